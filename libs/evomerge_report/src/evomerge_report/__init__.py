"""What a run has shown: folded from its event log, and written as a report, charts, a model card and result.json."""
