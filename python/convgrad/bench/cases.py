"""Single operations worth timing, written once for convgrad and PyTorch.

A case is one pass of one operation: its forward pass, or one gradient of it, computed again and
again from the same forward pass. FLOPs are those of the direct algorithm, two per multiply-add;
bytes are the inputs read and outputs written once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from convgrad.bench.explain import PASSES, Convolution

__all__ = ["Case", "Library", "all_cases", "conv_cases"]

Shape = tuple[int, ...]
FLOAT_BYTES = 4
SGD_SIZE = 1_000_000


@dataclass(frozen=True)
class Library:
    """Where PyTorch and convgrad differ. ``last`` lays a tensor out channels-last, or leaves it."""

    root: Any
    functional: Any
    tensor: Callable[..., Any]
    last: Callable[[Any], Any] = lambda tensor: tensor


@dataclass(frozen=True)
class Case:
    """``make(library)`` gives the call to time; ``algorithm(device)`` is how we compute it."""

    op: str
    what: str
    pass_: str
    make: Callable[[Library], Callable[[], Any]]
    flops: int
    bytes: int
    quick: bool = False
    convolution: Convolution | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return f"{self.op} {self.what} {self.pass_}"

    def algorithm(self, device: str = "cpu") -> str:
        return self.convolution.algorithms(device)[self.pass_] if self.convolution else ""


Function = Callable[..., Any]  # f(functional, *tensors)


def _forward(function: Function, shapes: tuple[Shape, ...], target: Any = None) -> Any:
    def make(library: Library) -> Callable[[], Any]:
        tensors = _tensors(library, shapes, target, ())

        def call() -> Any:
            with library.root.no_grad():
                return function(library.functional, *tensors)

        return call

    return make


def _gradient(
    function: Function, shapes: tuple[Shape, ...], wanted: tuple[int, ...], target: Any = None
) -> Any:
    def make(library: Library) -> Callable[[], Any]:
        tensors = _tensors(library, shapes, target, wanted)
        y = function(library.functional, *tensors)
        dy = library.root.ones_like(y)
        inputs = [tensors[i] for i in wanted]

        def call() -> tuple[Any, ...]:
            for tensor in inputs:
                tensor.grad = None  # so that the gradient is kept as it comes, not added
            y.backward(dy, retain_graph=True)
            return tuple(tensor.grad for tensor in inputs)

        return call

    return make


def _tensors(
    library: Library, shapes: tuple[Shape, ...], target: Any, wanted: tuple[int, ...]
) -> list[Any]:
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape, np.float32) for shape in shapes]
    tensors = [library.last(library.tensor(array)) for array in arrays]
    for i in wanted:
        tensors[i].requires_grad_()
    return tensors if target is None else [*tensors, library.tensor(target)]


def _bytes(*shapes: Shape) -> int:
    return FLOAT_BYTES * sum(math.prod(shape) for shape in shapes)


def conv_cases(
    what: str,
    x: Shape,
    w: Shape,
    *,
    stride: int = 1,
    padding: int | None = None,
    dilation: int = 1,
    groups: int = 1,
    transposed: bool = False,
    passes: tuple[str, ...] = PASSES,
    quick: bool = False,
) -> Iterator[Case]:
    """One case per pass. Padding keeps the size at stride 1, unless transposed."""
    dims = len(x) - 2
    if padding is None:
        padding = 0 if transposed else dilation * (w[2] - 1) // 2
    op = f"conv_transpose{dims}d" if transposed else f"conv{dims}d"
    settings = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}

    def function(functional: Any, *tensors: Any) -> Any:
        return getattr(functional, op)(*tensors, **settings)

    reach = dilation * (w[2] - 1) + 1
    if transposed:
        y = (x[0], w[1], *((size - 1) * stride - 2 * padding + reach for size in x[2:]))
        outputs, conv_x = math.prod((x[0], w[0], *x[2:])), y
    else:
        y = (x[0], w[0], *((size + 2 * padding - reach) // stride + 1 for size in x[2:]))
        outputs, conv_x = math.prod(y), x
    flops = 2 * outputs * math.prod(w[1:])
    convolution = Convolution(conv_x, w, stride, padding, dilation, groups, transposed)
    shapes = (x, w, (y[1],))
    makes = {
        "forward": _forward(function, shapes),
        "backward_input": _gradient(function, shapes, (0,)),
        "backward_weight": _gradient(function, shapes, (1, 2)),
    }
    for name in passes:
        yield Case(op, what, name, makes[name], flops, _bytes(x, w, y), quick, convolution)


def _convolutions() -> Iterator[Case]:
    yield from conv_cases("k3 1->16 @150, batch 128", (128, 1, 150), (16, 1, 3))
    yield from conv_cases("k3 16->32 @74, batch 128", (128, 16, 74), (32, 16, 3))
    yield from conv_cases("5x5 1->6 @28, batch 64", (64, 1, 28, 28), (6, 1, 5, 5))
    yield from conv_cases("5x5 6->16 @14, batch 64", (64, 6, 14, 14), (16, 6, 5, 5))
    yield from conv_cases("3x3 3->32 @32, batch 64", (64, 3, 32, 32), (32, 3, 3, 3))
    for channels, size, batch in (
        (8, 64, 16),
        (16, 32, 64),
        (32, 32, 64),
        (64, 16, 64),
        (128, 8, 64),
        (16, 128, 4),
    ):
        yield from conv_cases(
            f"3x3 {channels}->{channels} @{size}, batch {batch}",
            (batch, channels, size, size),
            (channels, channels, 3, 3),
            quick=channels == 64,
        )
    yield from conv_cases(
        "3x3 16->32 @32 stride 2, batch 64", (64, 16, 32, 32), (32, 16, 3, 3), stride=2
    )
    yield from conv_cases(
        "3x3 32->32 @32 dilation 2, batch 16", (16, 32, 32, 32), (32, 32, 3, 3), dilation=2
    )
    yield from conv_cases(
        "3x3 64->64 @16 groups 4, batch 64", (64, 64, 16, 16), (64, 16, 3, 3), groups=4
    )
    yield from conv_cases(
        "3x3 64->64 @32 depthwise, batch 16", (16, 64, 32, 32), (64, 1, 3, 3), groups=64
    )
    yield from conv_cases("1x1 64->64 @32, batch 16", (16, 64, 32, 32), (64, 64, 1, 1))
    yield from conv_cases("1x1 16->4 @128, batch 4", (4, 16, 128, 128), (4, 16, 1, 1))
    yield from conv_cases(
        "2x2 64->32 @32 stride 2, batch 4",
        (4, 64, 32, 32),
        (64, 32, 2, 2),
        stride=2,
        transposed=True,
    )
    yield from conv_cases("3x3x3 1->8 @48", (1, 1, 48, 48, 48), (8, 1, 3, 3, 3))
    yield from conv_cases("3x3x3 8->8 @48", (1, 8, 48, 48, 48), (8, 8, 3, 3, 3))
    yield from conv_cases("3x3x3 32->32 @12", (1, 32, 12, 12, 12), (32, 32, 3, 3, 3))


def _plain(
    op: str,
    what: str,
    function: Function,
    shapes: tuple[Shape, ...],
    y: Shape,
    flops: int = 0,
    target: Any = None,
    wanted: tuple[int, ...] | None = None,
    extra: int = 0,
    quick: bool = False,
) -> Iterator[Case]:
    """Forward and backward of an operation.

    Backward reads dy and writes the first input's gradient, and reads or writes `extra` bytes more:
    the first input's once, where nothing else is said.
    """
    yield Case(op, what, "forward", _forward(function, shapes, target), flops, _bytes(*shapes, y),
               quick)  # fmt: skip
    wanted = tuple(range(len(shapes))) if wanted is None else wanted
    backward = _bytes(y, shapes[0]) + (extra or _bytes(shapes[0]))
    yield Case(op, what, "backward", _gradient(function, shapes, wanted, target), 2 * flops,
               backward, quick)  # fmt: skip


def _sgd(library: Library) -> Callable[[], Any]:
    tensor = library.tensor(np.ones(SGD_SIZE, np.float32))
    parameter = library.root.nn.Parameter(tensor)
    parameter.grad = library.tensor(np.full(SGD_SIZE, 1e-3, np.float32))
    return library.root.optim.SGD([parameter], lr=1e-6, momentum=0.9).step


def _others() -> Iterator[Case]:
    image, pooled, vector = (64, 32, 32, 32), (64, 32, 16, 16), (32,)
    yield from _plain(
        "linear",
        "784->256, batch 64",
        lambda F, x, w, b: F.linear(x, w, b),
        ((64, 784), (256, 784), (256,)),
        (64, 256),
        flops=2 * 64 * 784 * 256,
        extra=_bytes((64, 784), (256, 784), (256, 784)),
        quick=True,
    )
    yield from _plain(
        "linear",
        "2048->10, batch 64",
        lambda F, x, w, b: F.linear(x, w, b),
        ((64, 2048), (10, 2048), (10,)),
        (64, 10),
        flops=2 * 64 * 2048 * 10,
        extra=_bytes((64, 2048), (10, 2048), (10, 2048)),
    )
    # Backward of max_pool2d reads a byte per window that says where its maximum was.
    yield from _plain(
        "max_pool2d", "2x2 32 @32, batch 64", lambda F, x: F.max_pool2d(x, 2), (image,), pooled,
        extra=math.prod(pooled), quick=True,
    )  # fmt: skip
    yield from _plain(
        "avg_pool2d", "2x2 32 @32, batch 64", lambda F, x: F.avg_pool2d(x, 2), (image,), pooled,
        extra=1,
    )  # fmt: skip
    yield from _plain("relu", "64x32x32x32", lambda F, x: F.relu(x), (image,), image, quick=True)
    yield from _plain("gelu", "64x32x32x32", lambda F, x: F.gelu(x), (image,), image)
    yield from _plain(
        "batch_norm", "64x32x32x32",
        lambda F, x, w, b: F.batch_norm(x, None, None, w, b, True),
        (image, vector, vector), image, extra=_bytes(image), quick=True,
    )  # fmt: skip
    classes = np.random.default_rng(1).integers(0, 4, (4, 128, 128))
    pixels = (4, 4, 128, 128)
    yield from _plain(
        "cross_entropy", "4x4x128x128, class per pixel",
        lambda F, x, t: F.cross_entropy(x, t), (pixels,), (), target=classes,
        extra=_bytes(pixels), quick=True,
    )  # fmt: skip
    yield from _plain(
        "cross_entropy", "1024x1000", lambda F, x, t: F.cross_entropy(x, t), ((1024, 1000),), (),
        target=np.arange(1024) % 1000, extra=_bytes((1024, 1000)),
    )  # fmt: skip
    # Reads p, its gradient and its momentum, writes p and momentum.
    yield Case("sgd", "1M parameters, momentum", "step", _sgd, 0, 5 * FLOAT_BYTES * SGD_SIZE, True)


# Convolutions of known networks, which fill a GPU: batch, channels in and out, size, kernel and
# stride.
RESNET50 = (
    (32, 3, 64, 224, 7, 2), (32, 64, 64, 56, 1, 1), (32, 64, 64, 56, 3, 1), (32, 64, 256, 56, 1, 1),
    (32, 256, 64, 56, 1, 1), (32, 128, 128, 56, 3, 2), (32, 256, 512, 56, 1, 2),
    (32, 128, 128, 28, 3, 1), (32, 128, 512, 28, 1, 1), (32, 256, 256, 14, 3, 1),
    (32, 1024, 256, 14, 1, 1), (32, 512, 512, 7, 3, 1), (32, 512, 2048, 7, 1, 1),
)  # fmt: skip
VGG16 = (
    (16, 3, 64, 224, 3, 1), (16, 64, 64, 224, 3, 1), (16, 64, 128, 112, 3, 1),
    (16, 128, 128, 112, 3, 1), (16, 256, 256, 56, 3, 1), (16, 512, 512, 28, 3, 1),
    (16, 512, 512, 14, 3, 1),
)  # fmt: skip
UNET2D = ((4, 1, 64, 512, 3, 1), (4, 64, 64, 512, 3, 1), (4, 128, 128, 256, 3, 1),
          (4, 512, 512, 64, 3, 1))  # fmt: skip
UNET3D = ((1, 1, 32, 96, 3, 1), (1, 32, 32, 96, 3, 1), (1, 64, 64, 48, 3, 1),
          (1, 128, 128, 24, 3, 1), (1, 256, 256, 12, 3, 1))  # fmt: skip


def _networks() -> Iterator[Case]:
    for network, dims, layers in (
        ("ResNet-50", 2, RESNET50),
        ("VGG-16", 2, VGG16),
        ("U-Net", 2, UNET2D),
        ("U-Net 3-D", 3, UNET3D),
    ):
        for n, c, k, size, kernel, stride in layers:
            what = f"{network} k{kernel} {c}->{k} @{size} s{stride}, batch {n}"
            x, w = (n, c, *[size] * dims), (k, c, *[kernel] * dims)
            yield from conv_cases(what, x, w, stride=stride, quick=c == 64)


def all_cases(device: str = "cpu") -> list[Case]:
    """Of the sizes that keep the device busy for about a millisecond."""
    networks = _networks() if device == "cuda" else ()
    return [*networks, *_convolutions(), *_others()]
