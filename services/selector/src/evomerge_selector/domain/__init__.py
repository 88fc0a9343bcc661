"""The search itself: pure, seeded, replayable. `tournament` is the state machine, `strategies` propose."""
