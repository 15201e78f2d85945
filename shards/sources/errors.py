"""Define the error of a source that cannot be read."""

from ...core import InputError


class SourceError(InputError):
    """Reports a source of images that cannot be read; `key` is the key of `[anchors]` at fault, `reason` the rest.

    Who opens a source for another section of the recipe says its own key instead.

    >>> error = SourceError("path", "no_such_folder does not exist")
    >>> str(error)
    'anchors.path: no_such_folder does not exist'
    """

    def __init__(self, key: str, reason: str):
        super().__init__(f"anchors.{key}: {reason}")
        self.key = key
        self.reason = reason
