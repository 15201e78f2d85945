"""Write result files, compare them, and show them in tables and on a page."""
