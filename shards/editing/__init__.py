"""Change whole sets: check, repair, extend, derive, import, export."""
