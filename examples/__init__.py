"""A real small model, and what a run on it needs."""
