"""Why a version answers as it does: how much each word of the question, context and choices speaks for a choice."""
