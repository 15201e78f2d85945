"""Measure how good the positives of a set are."""
