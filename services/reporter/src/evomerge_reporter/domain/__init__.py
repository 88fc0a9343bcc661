"""What the event log says, as values: pure."""
