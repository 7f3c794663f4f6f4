"""The typed configuration: one module for each family of blocks."""
