"""Load encoders and extract the features of images."""
