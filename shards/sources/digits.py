"""Read the embedded default source: scikit-learn's 1 797 handwritten digits, 8x8, grey."""

from pathlib import Path

import numpy as np

from .errors import SourceError
from .walk import LeftOut

TEST_EVERY = 5


class DigitsSource:
    """Reads one split of the digits: every fifth image is `test`, the others are `train`.

    The source's 17 grey levels (0…16) are spread over 0…255 and replicated to three channels.
    """

    name = "digits"
    licence = "cc-by-4.0"
    fingerprint = ""
    class_names: tuple[str, ...] | None = None
    classes_from = "the digits"
    label_rule = ""

    def __init__(self, split: str):
        if split not in ("train", "test"):
            raise SourceError("split", f"digits has the splits train and test, found {split!r}")

        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise SourceError(
                "path", "digits needs scikit-learn; run: pip install 'clsp[all]'"
            ) from error

        self.left_out: list[LeftOut] = []
        self.notes: list[str] = []
        if Path("digits").is_dir():
            self.notes.append(
                "digits is the embedded data set; for the folder of that name write ./digits"
            )

        flat, labels = load_digits(return_X_y=True)
        labels = np.asarray(labels)
        grey_NHWC = np.asarray(flat).reshape(-1, 8, 8, 1) * (255 / 16)
        images = np.rint(grey_NHWC).astype(np.uint8).repeat(3, axis=3)

        is_test = np.arange(len(labels)) % TEST_EVERY == TEST_EVERY - 1
        chosen = is_test if split == "test" else ~is_test
        self._images = images[chosen]
        self._labels = labels[chosen]

    def __len__(self) -> int:
        return len(self._labels)

    def content(self, index: int) -> np.ndarray:
        """Return the image `(8, 8, 3)` uint8."""
        return self._images[index]

    def label(self, index: int) -> int:
        """Return the digit, 0…9."""
        return int(self._labels[index])

    def path(self, index: int) -> None:
        """Return None: an image is no file of its own."""

    def describe(self, index: int) -> str:
        """Return the place of an image among the digits of its split."""
        return f"digit {index}"
