"""Training and measuring of models that score rows of a table."""
