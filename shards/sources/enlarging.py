"""Find images that are smaller than the size that they are wanted at, and would be enlarged."""

from collections import Counter

from .decoding import read_header
from .images import ImageSource
from .survey import Findings


def count_smaller(findings: Findings, size: int) -> int:
    """Return how many images have a side of fewer than `size` pixels, of those whose sizes were counted one by one."""
    return sum(count for side, count in _shorter_sides(findings).items() if side < size)


def usual_side(findings: Findings) -> int:
    """Return the largest number of pixels that both sides of at least half of the images have; 0 without images."""
    sides = _shorter_sides(findings)
    needed = sides.total() / 2
    for side in sorted(sides, reverse=True):
        needed -= sides[side]
        if needed <= 0:
            return side
    return 0


def enlarging_note(anchors: ImageSource) -> str | None:
    """Return a line that says how many images are enlarged; None where none is."""
    findings = anchors.findings
    smaller = count_smaller(findings, anchors.config.size)
    if not smaller:
        return None
    return (
        f"{smaller} of {_counted(findings)} images are smaller than anchors.size = {anchors.config.size} "
        f"and are enlarged; the smallest side has {findings.smallest_side} pixels"
    )


def why_enlarged(anchors: ImageSource) -> str | None:
    """Return why `anchors.size` is too large for a source, naming one of its images; None where it is not.

    It is if more than half of the images would be enlarged. Some small ones among many are usual, and need no more than
    a note. But where most are small the size itself is a mistake: everything made of blurred images is blurred, and
    costs as much as if it were not. Whoever means it sets `anchors.upscale`.
    """
    config = anchors.config
    findings = anchors.findings
    smaller = count_smaller(findings, config.size)
    counted = _counted(findings)
    if config.upscale or 2 * smaller <= counted:
        return None

    return (
        f"{_first_smaller(anchors)}, and so have {smaller} of {counted} images fewer than anchors.size = "
        f"{config.size}; set anchors.size={usual_side(findings)}, which half of them have, or anchors.upscale=true to "
        "enlarge them"
    )


def _counted(findings: Findings) -> int:
    """Return the number of images whose sizes were counted: of sources with very many sizes these are not all."""
    return _shorter_sides(findings).total()


def _shorter_sides(findings: Findings) -> Counter[int]:
    sides: Counter[int] = Counter()
    for size, count in findings.sizes.items():
        width, height = size.split("x")
        sides[min(int(width), int(height))] += count
    return sides


def _first_smaller(anchors: ImageSource) -> str:
    """Name the first image that is smaller; most are, so few are read for it."""
    source = anchors.source
    for index in range(anchors.source_count):
        if index in anchors.findings.unreadable:
            continue

        content = source.content(index)
        if isinstance(content, bytes):
            header = read_header(content)
            if min(header.width, header.height) < anchors.config.size:
                return f"{source.describe(index)} has {header.width}x{header.height} pixels"

    return "an image is smaller"
