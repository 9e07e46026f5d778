"""What the front gateway costs, and what it saves."""
