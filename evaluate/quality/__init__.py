"""How good the positives of a set are."""
