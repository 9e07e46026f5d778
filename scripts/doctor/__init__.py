"""What this machine lacks for `marctl build` and `marctl up`, and the cure."""
