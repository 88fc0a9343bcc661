"""The search itself: pure, seeded, replayable. `run` is the state machine, `strategies` propose."""
