"""Read image data sets, from wherever they come."""
