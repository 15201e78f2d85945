"""Where a pretraining step's time goes: by operation, and how near each kind of convolution is to a matrix product.

    python benchmarks/step_profile.py --batch 64

The step is SimCLR with the synthetic term on a ResNet-18 with CIFAR stem, 32×32, in bf16 where the processor computes
in it. The convolutions are then timed by themselves, each shape that the network has: forward, the gradient of the
images and the gradient of the weights. All three are the same number of operations, so their rates can be compared.
"""

import argparse
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from clsp.core import computes_bf16
from clsp.train import PretrainConfig
from clsp.train.build import prepared_method
from made_sets import SIZE, matrix_rate
from torch import nn
from torch.profiler import ProfilerActivity, profile

KINDS = {
    "aten::mkldnn_convolution": "convolutions, forward",
    "aten::convolution_backward": "convolutions, both gradients",
    "aten::native_batch_norm": "batch norm, forward",
    "aten::native_batch_norm_backward": "batch norm, gradient",
    "aten::clamp_min_": "ReLU, forward",
    "aten::threshold_backward": "ReLU, gradient",
}
"""The operations that matter, by the names that torch's profiler has for them."""
REPEATS = 5


@dataclass(frozen=True)
class Shape:
    """Holds what a convolution's time depends on."""

    channels: int
    out_channels: int
    kernel: int
    stride: int
    size: int
    """Side of the images that come in, in pixels."""


def make_step(batch: int, precision: torch.dtype) -> tuple[nn.Module, Callable[[], None]]:
    """Return the method and a function that does a step of it."""
    config = PretrainConfig(batch_size=batch)
    method = prepared_method(config, torch.device("cpu")).train()
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1, momentum=0.9)
    views = torch.randn(3, batch, 3, SIZE, SIZE)
    labels_B = torch.zeros(batch)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision is torch.bfloat16):
            losses = method([views[0], views[1]], views[2], None, labels_B)
            loss = torch.stack(list(losses.values())).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return method, step


def count_shapes(method: nn.Module, step: Callable[[], None]) -> Counter[Shape]:
    """Count the convolutions of a step by their shapes."""
    found: Counter[Shape] = Counter()

    def note(layer: nn.Conv2d, inputs: tuple[torch.Tensor], _: torch.Tensor) -> None:
        shape = Shape(
            channels=layer.in_channels,
            out_channels=layer.out_channels,
            kernel=layer.kernel_size[0],
            stride=layer.stride[0],
            size=inputs[0].shape[-1],
        )
        found[shape] += 1

    layers = [layer for layer in method.modules() if isinstance(layer, nn.Conv2d)]
    hooks = [layer.register_forward_hook(note) for layer in layers]
    step()
    for hook in hooks:
        hook.remove()

    return found


def print_operations(step: Callable[[], None]) -> None:
    """Print the share of a step that each kind of operation takes."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        step()

    spent: Counter[str] = Counter()
    for event in profiled.key_averages():
        spent[KINDS.get(event.key, "everything else")] += event.self_cpu_time_total

    for kind, microseconds in spent.most_common():
        print(f"  {kind:30} {microseconds / 1000:8.0f} ms {microseconds / spent.total():5.0%}")


def time_convolution(shape: Shape, batch: int, dtype: torch.dtype) -> dict[str, float]:
    """Return the seconds of a convolution's three parts, images and weights with their channels last."""
    padding = shape.kernel // 2
    last = torch.channels_last
    images = torch.randn(batch, shape.channels, shape.size, shape.size, dtype=dtype)
    images = images.contiguous(memory_format=last)
    weights = torch.randn(shape.out_channels, shape.channels, shape.kernel, shape.kernel)
    weights = weights.to(dtype).contiguous(memory_format=last)

    def forward() -> torch.Tensor:
        return nn.functional.conv2d(images, weights, None, shape.stride, padding)

    gradient = torch.randn_like(forward())

    def backward(of_images: bool) -> None:
        torch.ops.aten.convolution_backward(
            gradient,
            images,
            weights,
            None,
            [shape.stride] * 2,
            [padding] * 2,
            [1, 1],
            False,
            [0, 0],
            1,
            [of_images, not of_images, False],
        )

    return {
        "forward": seconds_each(forward),
        "gradient of images": seconds_each(lambda: backward(of_images=True)),
        "gradient of weights": seconds_each(lambda: backward(of_images=False)),
    }


def seconds_each(function: Callable[[], object]) -> float:
    """Return the seconds of a call, a mean over some, behind two that warm up."""
    for _ in range(2):
        function()

    start = time.perf_counter()
    for _ in range(REPEATS):
        function()
    return (time.perf_counter() - start) / REPEATS


def print_convolutions(shapes: Counter[Shape], batch: int, dtype: torch.dtype) -> None:
    """Print each shape's rates, and what a step would spend at the rate of a matrix product."""
    limit = matrix_rate(dtype, "cpu")
    print(f"convolutions; a matrix product has {limit / 1e9:.0f} GFLOP/s")
    spent: Counter[str] = Counter()
    ideal = 0.0

    for shape, times in shapes.items():
        out = shape.size // shape.stride
        work = 2 * batch * out**2 * shape.channels * shape.out_channels * shape.kernel**2
        parts = time_convolution(shape, batch, dtype)
        ideal += times * work / limit
        for part, each in parts.items():
            spent[part] += times * each

        rates = ", ".join(f"{part} {work / each / 1e9:.0f}" for part, each in parts.items())
        sides = f"{shape.channels} to {shape.out_channels} at {shape.size}×{shape.size}"
        print(
            f"  {times:2} × {shape.kernel}×{shape.kernel}, {sides}, stride {shape.stride}: {rates}"
        )

    for part, total in spent.items():
        print(f"  {part:20} {1000 * total:6.0f} ms a step, {ideal / total:4.0%} of the matrix rate")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=64)
    options = parser.parse_args()
    dtype = torch.bfloat16 if computes_bf16() else torch.float32

    method, step = make_step(options.batch, dtype)
    shapes = count_shapes(method, step)
    print(
        f"a step of {options.batch} images in three views, {torch.get_num_threads()} threads, {dtype}"
    )
    print_operations(step)
    print_convolutions(shapes, options.batch, dtype)


if __name__ == "__main__":
    main()
