"""What the command line does to sets: check, repair, extend, derive, import, export."""
