"""Image data sets, from wherever they come."""
