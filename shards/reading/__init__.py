"""What training and evaluation read of a set."""
