"""Which features speak for an answer, and which against it."""
