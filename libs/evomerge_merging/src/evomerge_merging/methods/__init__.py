"""The merge methods; `registry` tells what a method is."""

from evomerge_merging.methods.registry import Block, Method, Parameter, PerModel, View, merge_method, method, methods

__all__ = ["Block", "Method", "Parameter", "PerModel", "View", "merge_method", "method", "methods"]
