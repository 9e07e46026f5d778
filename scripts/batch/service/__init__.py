"""Batch jobs over HTTP: a process that takes jobs, runs each by the command `marctl batch`, and tells how far it is."""
