"""Implementations of the ports; all of one port pass the same contract suite (tests/contract)."""
