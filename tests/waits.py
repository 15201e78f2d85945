"""Count what makes the host wait for a device, on the pretended one of `pytest -p pretend_plugin`."""

import sys
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

needs_pretended_device = pytest.mark.skipif(
    "pretend_cuda" not in sys.modules,
    reason="no pretended CUDA device; where ../shared/pretend_cuda is, .ci/run has a step with it",
)
DEVICE = torch.device("cuda", 0)


@contextmanager
def counted_waits() -> Iterator[Counter]:
    """Count the waits inside the block by what and where, copies from pageable memory among them."""
    from pretend_cuda import SYNCS  # type: ignore[import-not-found]

    SYNCS.clear()
    found: Counter = Counter()
    with _PageableCopies(found):
        yield found
    found.update(SYNCS)


class _PageableCopies(TorchDispatchMode):
    """Counts copies to the device from pageable memory: a real one may wait there, though asked not to block."""

    def __init__(self, found: Counter):
        super().__init__()
        self.found = found

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        source = None
        if func is torch.ops.aten._to_copy.default and kwargs.get("device") is not None:
            if torch.device(kwargs["device"]).type == "cuda":
                source = args[0]
        elif func is torch.ops.aten.copy_.default and args[0].is_cuda:
            source = args[1]

        if source is not None and not source.is_cuda and source.dim() and not source.is_pinned():
            frames = [f for f in traceback.extract_stack() if "/torch/" not in f.filename]
            self.found["pageable", f"{frames[-2].filename}:{frames[-2].lineno}"] += 1

        return func(*args, **kwargs)
