"""The science, readable alone: the family of objectives, their losses, exact games."""
