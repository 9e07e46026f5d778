"""Studies of explanations: what they cost, whether they agree, and whether they are right about the model."""
