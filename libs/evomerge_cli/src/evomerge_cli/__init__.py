"""The evomerge command and the stack that it embeds."""
