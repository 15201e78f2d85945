"""`clsp reproduce`: a recipe's whole pipeline."""
