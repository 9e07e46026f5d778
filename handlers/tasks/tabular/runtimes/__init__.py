"""The libraries that models come from, behind one interface; each is imported where a model needs it."""
