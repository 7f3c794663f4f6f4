"""How weights are moved: the optimiser loop, batches, engines of several processes, trackers."""
