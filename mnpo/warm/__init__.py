"""Commands without a start-up: forked from one process that has the libraries loaded, where a workflow asks for it."""
