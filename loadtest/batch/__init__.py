"""Studies of batch jobs: what they cost, what they hold in memory, and what is left of them when they are killed."""
