"""What explanations of every task have in common: methods that need no model, the form of requests, the page."""
