"""Reads the event log: live page, plots, report, metrics."""
