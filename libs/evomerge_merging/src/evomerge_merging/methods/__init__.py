"""The merge methods; `registry` tells what a method is."""

from evomerge_merging.methods.forms import Form, TaskVectorSum, WeightedSum
from evomerge_merging.methods.registry import Method, Parameter, PerModel, merge_method, method, methods
from evomerge_merging.methods.view import Block, View

__all__ = [
    "Block",
    "Form",
    "Method",
    "Parameter",
    "PerModel",
    "TaskVectorSum",
    "View",
    "WeightedSum",
    "merge_method",
    "method",
    "methods",
]
