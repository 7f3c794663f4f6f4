"""Language models: checkpoints, chat templates, log-probabilities."""
