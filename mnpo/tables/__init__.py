"""What printed tables are made of: held-out evaluations, the paper's tables with ours beside them, files."""
