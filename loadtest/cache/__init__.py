"""What the prediction cache costs, and what it saves."""
