"""What the tests of every op share. The oracles, in tests/reference, import nothing of convgrad."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import convgrad as cg
from tests.device import ON_CPU, tensor_on, values

THREADS = (1, 2, 3, 7)


def integers(
    rng: np.random.Generator,
    shape: Sequence[int],
    low: int = -4,
    high: int = 4,
    dtype: Any = np.float32,
) -> np.ndarray:
    """Small whole numbers: their products and sums are exact in any order (below 2**24)."""
    return rng.integers(low, high + 1, size=shape).astype(dtype)


def leaves(arrays: Sequence[np.ndarray | None]) -> list[Any]:
    """A tensor that wants a gradient for each float array; others as they are."""
    return [
        cg.tensor(a, requires_grad=a.dtype.kind == "f") if isinstance(a, np.ndarray) else a
        for a in arrays
    ]


def misplaced(host: np.ndarray, requires_grad: bool = False) -> cg.Tensor:
    """A tensor that begins one element past where a vector of elements may begin."""
    memory = tensor_on(np.concatenate([host.ravel()[:1], host.ravel()]))
    return cg.Tensor(memory.array[1:].reshape(host.shape), requires_grad)


def assert_same_bits_where_misplaced(
    fn: Callable[..., Any], arrays: Sequence[np.ndarray | None]
) -> None:
    """fn's value and gradients do not depend on where in memory the arrays lie."""
    results = []
    for make in (tensor_on, misplaced):
        inputs = [
            make(np.ascontiguousarray(a), a.dtype.kind == "f") if isinstance(a, np.ndarray) else a
            for a in arrays
        ]
        y = fn(*inputs)
        y.backward(make(np.ones(y.shape, y.dtype)))
        grads = [t.grad for t in inputs if isinstance(t, cg.Tensor) and t.requires_grad]
        results.append([np.ascontiguousarray(values(t)).tobytes() for t in (y, *grads)])
    assert results[0] == results[1]


def forward_and_gradients(
    fn: Callable[..., Any], arrays: Sequence[np.ndarray | None], dy: np.ndarray | None = None
) -> list[np.ndarray]:
    """[fn(*arrays), gradient of sum(dy * fn) for each float array], as NumPy arrays."""
    inputs = leaves(arrays)
    y = fn(*inputs)
    start = np.ones(y.shape, y.dtype) if dy is None else dy
    y.backward(cg.tensor(start))
    return [values(y)] + [
        values(t.grad) for t in inputs if isinstance(t, cg.Tensor) and t.requires_grad
    ]


def assert_same_bits_for_any_threads(fn: Callable[[], Sequence[np.ndarray]]) -> None:
    """fn() gives the same bits twice, and on the CPU for each number of threads in THREADS."""
    results = []
    for n in (*THREADS, 1) if ON_CPU else (1, 1):
        cg.set_num_threads(n)
        results.append([np.ascontiguousarray(a).tobytes() for a in fn()])
    assert all(r == results[0] for r in results[1:])


def assert_gradients(
    fn: Callable[..., Any],
    arrays: Sequence[np.ndarray],
    rng: np.random.Generator,
    eps: float = 1e-6,
    tol: float = 1e-6,
) -> None:
    """Central differences of <dy, fn> in float64 along one random direction per input."""
    arrays = [
        np.asarray(a, np.float64) if isinstance(a, np.ndarray) and a.dtype.kind == "f" else a
        for a in arrays
    ]
    dy = rng.standard_normal(fn(*leaves(arrays)).shape)
    _, *grads = forward_and_gradients(fn, arrays, dy)
    floats = [i for i, a in enumerate(arrays) if isinstance(a, np.ndarray) and a.dtype.kind == "f"]
    for i, grad in zip(floats, grads):
        direction = rng.standard_normal(arrays[i].shape)

        def value(step: float, i: int = i, direction: np.ndarray = direction) -> float:
            moved = list(arrays)
            moved[i] = arrays[i] + step * direction
            return float((values(fn(*leaves(moved))) * dy).sum())

        numeric = (value(eps) - value(-eps)) / (2 * eps)
        analytic = float((grad * direction).sum())
        scale = max(1.0, abs(numeric), np.abs(grad * direction).sum())
        assert abs(numeric - analytic) <= tol * scale, (i, numeric, analytic)


def assert_parity(
    torch: Any,
    ours: Callable[..., Any],
    theirs: Callable[..., Any],
    arrays: Sequence[np.ndarray | None],
    rtol: float = 1e-4,
    atol: float = 1e-5,
) -> None:
    """Values and gradients of ours(*tensors) and theirs(*torch tensors) agree, shapes exactly."""
    inputs = [
        torch.tensor(a, requires_grad=a.dtype.kind == "f") if isinstance(a, np.ndarray) else a
        for a in arrays
    ]
    y = theirs(*inputs)
    dy = np.random.default_rng(1).standard_normal(tuple(y.shape)).astype(y.detach().numpy().dtype)
    y.backward(torch.tensor(dy))
    expected = [y.detach().numpy()] + [
        t.grad.numpy() for t in inputs if hasattr(t, "requires_grad") and t.requires_grad
    ]
    got = forward_and_gradients(ours, arrays, dy)
    assert len(got) == len(expected)
    for g, e in zip(got, expected):
        assert g.shape == e.shape and g.dtype == e.dtype
        np.testing.assert_allclose(g, e, rtol=rtol, atol=atol)


def assert_near_float64(
    got: np.ndarray, exact: np.ndarray, sequential: np.ndarray, factor: float = 2.0
) -> None:
    """Error against float64 at most `factor` times that of a plain sequential float32 sum,
    by maximum and by root mean square."""
    scale = np.abs(exact).max() + 1e-30
    floor = np.finfo(np.float32).eps / 2
    for norm in (lambda e: np.abs(e).max(), lambda e: np.sqrt(np.mean(e**2))):
        ours, plain = norm(got - exact) / scale, norm(sequential - exact) / scale
        assert ours <= factor * max(plain, floor), (ours, plain)
