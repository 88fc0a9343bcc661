"""Executes recipes into weights, and exports finished models."""
