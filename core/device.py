"""Find out what the machine at hand computes in, and bring tensors there. Imports torch only when it is asked."""

import os
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
