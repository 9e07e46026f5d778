"""What the front door costs, and what it saves."""
