"""A project to begin with: what `marctl init` writes for somebody who has installed marctl."""
