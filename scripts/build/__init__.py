"""From a recipe to a verified, reproducible `.mar`."""
