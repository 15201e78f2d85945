"""Encoders and the features of images."""
