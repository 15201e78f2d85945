"""Read sets, as training and evaluation do."""
