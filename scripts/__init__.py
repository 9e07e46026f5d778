"""The operator's side: the `marctl` command and everything behind it."""
