"""Imported once by the process from which stages are forked: the libraries that nearly every command loads."""

import signal

# A SIGTERM to the whole process group must leave this process alive: it alone can tell when a stage has ended. Stages
# inherit the mask, so that none comes too early, and lift it in `run_stage`.
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

import accelerate  # noqa: E402
import kornia  # noqa: E402
import scipy.optimize  # noqa: E402
import sklearn.datasets  # noqa: E402
import sklearn.manifold  # noqa: E402
import torchvision  # noqa: E402

from ...train.methods.base import Method  # noqa: E402  (timm)

__all__ = ["Method", "accelerate", "kornia", "scipy", "sklearn", "torchvision"]
