"""Find out what the machine at hand computes in, and bring tensors there. Imports torch only when it is asked."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

SWITCH = "CLSP_BF16"
"""An environment variable that answers in the machine's place, `yes` or `no`, for tests of both kinds anywhere."""


def computes_bf16() -> bool:
    """Return True where bfloat16 is computed in hardware: on the GPU if there is one, else by the CPU's instructions.

    Elsewhere bfloat16 is emulated: right, but about ten times slower than float32.
    """
    if SWITCH in os.environ:
        return os.environ[SWITCH] == "yes"

    import torch

    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)

    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def to_device(tensor: "torch.Tensor", device: "torch.device") -> "torch.Tensor":
    """Copy a tensor to a device; a GPU copies it from page-locked memory, and nobody waits for it."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)

    # Of pageable memory even a copy that is asked not to block may wait for what the GPU has to do before
    return tensor.pin_memory().to(device, non_blocking=True)


@contextmanager
def training_precision() -> Iterator[None]:
    """Let a GPU train fast inside the block: TF32 for what stays float32, and the quickest of cuDNN's algorithms."""
    with _precision(tf32=True, benchmark=True):
        yield


@contextmanager
def exact_precision() -> Iterator[None]:
    """Let a GPU compute float32 as float32 inside the block: features and images must not depend on the machine.

    torch by itself lets cuDNN's convolutions round to TF32.
    """
    with _precision(tf32=False, benchmark=False):
        yield


@contextmanager
def _precision(tf32: bool, benchmark: bool) -> Iterator[None]:
    import torch

    matmul = torch.backends.cuda.matmul
    cudnn = torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark

    matmul.allow_tf32 = tf32
    cudnn.allow_tf32 = tf32
    cudnn.benchmark = benchmark
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before
