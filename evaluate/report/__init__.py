"""Result files, comparisons, tables and the page."""
