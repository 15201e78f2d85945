"""Define the function that long work calls to tell how far it is."""

from collections.abc import Callable

Report = Callable[[int, int], None]
"""Called with (done, total); a total of 0 is not known."""
