"""Arithmetic, comparisons, elementwise functions and reductions against PyTorch and float64."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import convgrad as cg
from convgrad.functional import math as cg_math
from tests.device import ON_CPU, lib, tensor_on, values

from .helpers import assert_gradients, assert_parity, assert_same_bits_for_any_threads, leaves


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def positive(*shape: int) -> np.ndarray:
    return np.abs(normal(*shape)) + np.float32(0.5)


# Each takes tensors of either library, named `t` for the module's functions.
UNARY = {
    "neg": lambda x: -x,
    "abs": lambda x: abs(x),
    "abs_method": lambda x: x.abs(),
    "exp": lambda x: x.exp(),
    "log": lambda x: (x * x + 1).log(),
    "sqrt": lambda x: (x * x + 1).sqrt(),
    "sign": lambda x: x.sign() * x,
    "clamp": lambda x: x.clamp(-0.5, 0.75),
    "clamp_min": lambda x: x.clamp(min=0.0),
    "clamp_max": lambda x: x.clamp(max=0),
    "square": lambda x: x**2,
    "cube": lambda x: x**3.0,
    "power_0": lambda x: x**0,
    "power_1": lambda x: x**1,
    "root": lambda x: (x * x + 1) ** 0.5,
    "inverse": lambda x: (x * x + 1) ** -1,
    "exponent": lambda x: 2.0**x,
    "plus_number": lambda x: x + 1.5 + 2,
    "number_minus": lambda x: 1 - x,
    "number_over": lambda x: 3.0 / (x * x + 2),
    "scaled": lambda x: x * 0.25,
    "divided": lambda x: x / 3,
    "add_alpha": lambda x: x.add(x, alpha=2).sub(x * x, alpha=0.5),
    "clone": lambda x: x.clone(),
    "double": lambda x: x.double() * 2,
    "to": lambda x: (x * x).float(),
    "sum": lambda x: x.sum(),
    "sum_0": lambda x: x.sum(0),
    "sum_last": lambda x: x.sum(dim=-1, keepdim=True),
    "sum_pair": lambda x: x.sum((0, 2)),
    "sum_pair_keep": lambda x: x.sum(dim=(-1, 0), keepdim=True),
    "sum_none": lambda x: x.sum(dim=()),
    "mean": lambda x: x.mean(),
    "mean_1": lambda x: x.mean(1),
    "mean_pair": lambda x: x.mean(dim=(0, 2), keepdim=True),
    "var": lambda x: x.var(),
    "var_0": lambda x: x.var(0),
    "var_biased": lambda x: x.var(dim=(0, 2), unbiased=False, keepdim=True),
    "var_correction": lambda x: x.var(dim=1, correction=0),
    "var_flag": lambda x: x.var(False),
    "std": lambda x: x.std(),
    "std_1": lambda x: x.std(1, keepdim=True),
    "max": lambda x: x.max(),
    "min": lambda x: x.min(),
    "max_dim": lambda x: x.max(1)[0],
    "max_dim_keep": lambda x: x.max(dim=-1, keepdim=True).values,
    "min_dim": lambda x: x.min(0).values,
    "sort": lambda x: x.sort(1)[0],
    "sort_down": lambda x: x.sort(dim=0, descending=True).values,
    "topk": lambda x: x.topk(2, 1).values,
    "topk_smallest": lambda x: x.topk(1, dim=0, largest=False)[0],
    "cumsum": lambda x: x.cumsum(1),
    "cumsum_last": lambda x: x.cumsum(-1),
    "where_method": lambda x: x.where(x > 0, x * 2),
    "masked": lambda x: (x * (x > 0)).sum(1),
    "normalize": lambda x: (x - x.mean(0, keepdim=True)) / (x.std(0, keepdim=True) + 1e-5),
}


@pytest.mark.parametrize("name", UNARY)
@pytest.mark.parametrize("shape", [(4, 5, 3), (2, 1, 6)], ids=str)
def test_parity_of_one_operand(torch, name, shape):
    degenerate = {"var_correction", "std_1", "topk"} if shape[1] == 1 else set()
    if name in degenerate:
        shape = (2, 3, 6)
    assert_parity(torch, UNARY[name], UNARY[name], [normal(*shape)])


BINARY = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / (b * b + 1),
    "pow": lambda a, b: (a * a + 0.5) ** b,
    "maximum": lambda a, b: a.maximum(b),
    "minimum": lambda a, b: a.minimum(b),
}
SHAPES = [
    ((3, 4), (3, 4)),
    ((3, 4), (4,)),
    ((3, 4), ()),
    ((), (2, 3)),
    ((2, 1, 3), (4, 1)),
    ((2, 3, 4, 5), (1, 3, 1, 1)),
    ((2, 3, 4, 5), (3, 1, 1)),
    ((2, 3, 4, 5), (2, 3, 4, 5)),
    ((2, 1, 4, 5), (2, 3, 1, 1)),
    ((0, 3), (3,)),
]


@pytest.mark.parametrize("name", BINARY)
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_parity_of_two_operands(torch, name, shapes):
    a, b = shapes
    assert_parity(torch, BINARY[name], BINARY[name], [normal(*a), normal(*b, seed=1)])


@pytest.mark.quick
@pytest.mark.parametrize("name", BINARY)
def test_gradients_of_two_operands(name):
    rng = np.random.default_rng(3)
    a, b = rng.standard_normal((2, 3, 4)), rng.standard_normal((3, 1))
    assert_gradients(BINARY[name], [a, b], rng)


@pytest.mark.parametrize("name", sorted(set(UNARY) - {"double", "to", "sign", "power_0"}))
def test_gradients_of_one_operand(name):
    rng = np.random.default_rng(4)
    assert_gradients(UNARY[name], [rng.standard_normal((4, 5, 3))], rng)


@given(
    st.lists(st.integers(0, 3), min_size=0, max_size=4),
    st.lists(st.booleans(), min_size=4, max_size=4),
    st.integers(0, 4),
    st.sampled_from(["add", "sub", "mul", "div"]),
)
@settings(max_examples=80, deadline=None)
def test_broadcasting_of_drawn_shapes(shape, ones, drop, name):
    """b is a with some axes of length 1 and some leading axes missing."""
    other = [1 if one else n for n, one in zip(shape, ones)][min(drop, len(shape)) :]
    rng = np.random.default_rng(5)
    a = rng.integers(-4, 5, shape).astype(np.float64)
    b = rng.integers(1, 5, other).astype(np.float64)
    dy = rng.integers(-4, 5, np.broadcast_shapes(a.shape, b.shape)).astype(np.float64)
    x, w = leaves([a, b])
    y = {"add": x + w, "sub": x - w, "mul": x * w, "div": x / w}[name]
    expected, da, db = {
        "add": (a + b, dy, dy),
        "sub": (a - b, dy, -dy),
        "mul": (a * b, dy * b, dy * a),
        "div": (a / b, dy / b, -dy * a / b**2),
    }[name]
    y.backward(cg.tensor(dy))
    np.testing.assert_array_equal(values(y), expected)
    for leaf, grad in ((x, da), (w, db)):
        own = np.zeros(leaf.shape)
        # The adjoint of broadcasting, written by hand: add every copy into its place.
        for where in np.ndindex(*dy.shape):
            tail = where[len(where) - own.ndim :]
            place = tuple(i if n != 1 else 0 for i, n in zip(tail, own.shape))
            own[place] += np.broadcast_to(grad, dy.shape)[where]
        np.testing.assert_allclose(values(leaf.grad), own, rtol=1e-14, atol=1e-14)


# ---- values that are no numbers, ties ----


def test_nan_and_infinity_propagate(torch):
    x = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0], np.float32)
    y = np.array([1.0, np.nan, 2.0, np.inf, 3.0, -np.inf], np.float32)
    for name, f in {**BINARY, "div": lambda a, b: a / b, "pow": lambda a, b: a**b}.items():
        ours, theirs = f(cg.tensor(x), cg.tensor(y)), f(torch.tensor(x), torch.tensor(y))
        np.testing.assert_array_equal(values(ours), theirs.numpy(), err_msg=name)
    for name in ("neg", "abs", "exp", "clamp", "sum", "mean", "max", "min", "max_dim", "cumsum"):
        f = UNARY[name]
        try:
            theirs = f(torch.tensor(x[None]))
        except IndexError:
            continue
        ours = values(f(cg.tensor(x[None])))
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=3e-7, err_msg=name)
    for name in ("log", "sqrt", "sign"):
        theirs = getattr(torch.tensor(x), name)()
        np.testing.assert_array_equal(values(getattr(cg.tensor(x), name)()), theirs.numpy())
    for name in ("isnan", "isinf", "isfinite"):
        theirs = getattr(torch, name)(torch.tensor(x))
        np.testing.assert_array_equal(values(getattr(cg, name)(cg.tensor(x))), theirs.numpy())


def test_gradients_at_kinks_are_pytorchs(torch):
    x = np.array([[0.0, 0.0, 1.0, 1.0], [-1.0, 0.0, np.nan, 1.0]], np.float32)
    y = np.array([[0.0, 1.0, 1.0, np.nan], [-1.0, 2.0, 1.0, 0.0]], np.float32)
    assert_parity(torch, lambda a, b: a.maximum(b), lambda a, b: a.maximum(b), [x, y])
    assert_parity(torch, lambda a, b: a.minimum(b), lambda a, b: a.minimum(b), [x, y])
    tied = np.array([[1.0, 2.0, 2.0], [2.0, 0.0, 2.0]], np.float32)
    for f in (
        lambda t: t.max(),
        lambda t: t.min(),
        lambda t: t.max(1).values,
        lambda t: t.abs(),
        lambda t: t.clamp(1.0, 2.0),
        lambda t: t**0,
        lambda t: t**2,
        lambda t: t**1.5,
        lambda t: (t * 0 + 1).std(1),
        lambda t: t.sqrt(),
    ):
        assert_parity(torch, f, f, [tied])
    zero = np.zeros(3, np.float32)
    exponent = np.array([0.0, 1.0, 2.0], np.float32)
    assert_parity(torch, lambda a, b: a**b, lambda a, b: a**b, [zero, exponent])
    nan = np.array([1.0, np.nan, 3.0], np.float32)
    assert_parity(torch, lambda t: t.max(), lambda t: t.max(), [nan])


ORDERED = {
    "argmax": lambda x: x.argmax(),
    "argmax_1": lambda x: x.argmax(1),
    "argmax_keep": lambda x: x.argmax(dim=0, keepdim=True),
    "argmin": lambda x: x.argmin(),
    "argmin_-1": lambda x: x.argmin(dim=-1),
    "max_indices": lambda x: x.max(1).indices,
    "min_indices": lambda x: x.min(0)[1],
    "any": lambda x: (x > 1).any(),
    "any_0": lambda x: (x > 1).any(0),
    "all_keep": lambda x: (x > -1).all(dim=1, keepdim=True),
    "all": lambda x: (x > -9).all(),
    "all_floats": lambda x: x.all(),
    "count": lambda x: (x > 0).sum(),
    "count_0": lambda x: (x > 0).sum(0),
    "long": lambda x: (x * 10).long(),
    "int": lambda x: (x * 10).int(),
    "bool": lambda x: x.bool(),
    "lt": lambda x: x < 0.5,
    "le": lambda x: x <= 0,
    "gt": lambda x: x > x * 2,
    "ge": lambda x: x <= 0.25,
    "eq": lambda x: x == x * 1,
    "ne": lambda x: x != 0,
    "and": lambda x: (x > 0) & (x < 1),
    "or": lambda x: (x > 1) | (x < -1),
    "xor": lambda x: (x > 0) ^ (x < 1),
    "not": lambda x: ~(x > 0),
    "int_not": lambda x: ~(x * 10).long(),
    "int_sum": lambda x: (x * 10).int().sum(1),
    "int_cumsum": lambda x: (x * 10).int().cumsum(0),
    "int_square": lambda x: (x * 10).long() ** 2,
    "int_over": lambda x: (x * 10).long() / 2,
    "int_max": lambda x: (x * 10).long().max(1).values,
    "int_clamp": lambda x: (x * 10).long().clamp(-3, 4),
    "int_abs": lambda x: abs((x * 10).long()),
    "int_exp": lambda x: (x * 2).long().exp(),
}


@pytest.mark.parametrize("name", ORDERED)
def test_parity_of_what_has_no_gradient(torch, name):
    x = normal(4, 6)
    ours, theirs = ORDERED[name](cg.tensor(x)), ORDERED[name](torch.tensor(x))
    assert ours.shape == tuple(theirs.shape) and not ours.requires_grad
    assert ours.dtype.name == str(theirs.dtype).removeprefix("torch.")
    np.testing.assert_allclose(values(ours), theirs.numpy(), rtol=2e-7)


def test_sorting_is_stable_and_puts_nan_last(torch):
    x = np.array([[3, 1, 3, 1, 2, 3], [0, np.nan, 0, 5, np.nan, 5]], np.float32)
    for descending in (False, True):
        theirs = torch.tensor(x).sort(dim=1, descending=descending, stable=True)
        ours = cg.tensor(x).sort(1, descending)
        np.testing.assert_array_equal(values(ours.indices), theirs.indices.numpy())
        np.testing.assert_array_equal(values(ours.values), theirs.values.numpy())
        ours = cg.tensor(x).argsort(1, descending)
        np.testing.assert_array_equal(values(ours), theirs.indices.numpy())
    top = cg.tensor(x).topk(3)
    np.testing.assert_array_equal(values(top.values), torch.tensor(x).topk(3).values.numpy())
    np.testing.assert_array_equal(values(top.indices), [[0, 2, 5], [1, 4, 3]])


# ---- types ----

TYPES = ["float32", "float64", "int64", "int32", "uint8", "bool"]


@pytest.mark.parametrize("a", TYPES)
@pytest.mark.parametrize("b", [*TYPES, "True", "3", "2.5"])
def test_type_promotion(torch, a, b):
    for shape_a, shape_b in (((2,), (2,)), ((2,), ()), ((), (2,)), ((), ())):
        ours, theirs = cg.ones(shape_a, dtype=a), torch.ones(shape_a, dtype=getattr(torch, a))
        if b in TYPES:
            other = cg.ones(shape_b, dtype=b), torch.ones(shape_b, dtype=getattr(torch, b))
        else:
            other = (eval(b),) * 2
        for f in (lambda x, y: x + y, lambda x, y: x * y, lambda x, y: y / x, lambda x, y: x < y):
            got, expected = f(ours, other[0]), f(theirs, other[1])
            assert got.dtype.name == str(expected.dtype).removeprefix("torch."), (a, b, shape_a)
            np.testing.assert_array_equal(values(got), expected.numpy())


def test_gradients_of_promoted_operands_keep_their_types(torch):
    f = lambda a, b: a * b + a  # noqa: E731
    assert_parity(torch, f, f, [normal(3), normal(3, seed=1).astype(np.float64)])
    assert_parity(torch, f, f, [normal(3), np.array([1, 2, 3])])


@pytest.mark.quick
def test_numbers_and_arrays_on_either_side():
    x = cg.tensor([1.0, 2.0], requires_grad=True)
    # Of NumPy on the CPU alone: beside a tensor on a GPU they are of another device.
    array = np.array([3.0, 4.0], np.float32) if ON_CPU else cg.tensor([3.0, 4.0])
    for y, expected in (
        (array * x, [3, 8]),
        (x * array, [3, 8]),
        (array + x, [4, 6]),
        (array - x, [2, 2]),
        (array / x, [3, 2]),
        (np.float32(2) * x, [2, 4]),
        (np.float64(2) * x, [2, 4]),
        (np.float64(2) - x, [1, 0]),
        (np.int64(2) ** x, [2, 4]),
    ):
        assert isinstance(y, cg.Tensor) and y.requires_grad and y.dtype == np.float32
        np.testing.assert_array_equal(values(y), expected)
    for y in (array > x, array == x, x == array, np.float32(1.5) < x):
        assert isinstance(y, cg.Tensor) and y.dtype == cg.bool
    assert (array == x).tolist() == [False, False]
    matrix = np.ones((2, 2), np.float32) if ON_CPU else cg.ones(2, 2)
    assert isinstance(matrix @ cg.ones(2, 2), cg.Tensor)
    with pytest.raises(TypeError, match=r"\[add\] .*Got str"):
        x + "a"
    with pytest.raises(TypeError, match=r"\[mul\] .*Got list"):
        x * [1, 2]


# ---- sums ----


@pytest.mark.parametrize("axes", [None, 0, 1, (0, 2, 3), (0, 2), (2, 3), (1,), (1, 2, 3)], ids=str)
@pytest.mark.parametrize("layout", ["C", "channels_last", "strided"])
def test_sums_of_many_terms_are_accurate(axes, layout):
    """Never worse than float64 rounded once and a float32 block sum: 1.5 in 2^24 of sum |x|."""
    x = np.random.default_rng(6).random((6, 3, 40, 41)).astype(np.float32) + 1
    array = {
        "C": x,
        "channels_last": lib.channels_last(x),
        "strided": np.repeat(x, 2, axis=3)[..., ::2],
    }[layout]
    got = tensor_on(array)
    total = values(got.sum(axes))
    exact = x.sum(axes if axes is None else tuple(np.atleast_1d(axes)), dtype=np.float64)
    np.testing.assert_allclose(total, exact, rtol=4e-7)
    np.testing.assert_allclose(values(got.mean(axes)), exact / (x.size / total.size), rtol=4e-7)


@pytest.mark.parametrize("seed", range(2))
def test_same_bits_for_any_threads(seed):
    x = normal(4, 6, 17, 19, seed=seed)
    dy = cg.tensor(normal(4, 6, 17, 19, seed=seed + 9))

    def run():
        for array in (x, lib.channels_last(x)):
            t, b = tensor_on(array, True), cg.tensor(normal(6, 1, 1), requires_grad=True)
            y = (t * b + b).exp() / (t * t + 1.0) + t
            y.backward(dy)
            yield from (values(y), values(t.grad), values(b.grad))
            yield from (values(t.detach().sum((0, 2))), values(t.detach().var((0, 2, 3))))
            yield from (values(t.detach().mean()), values(t.detach().cumsum(2)))

    assert_same_bits_for_any_threads(lambda: list(run()))


# ---- layout ----

LAYOUT = {
    **{name: f for name, f in BINARY.items()},
    "scaled": lambda a, b: a * 2.0,
    "neg": lambda a, b: -a,
    "exp": lambda a, b: a.exp(),
    "log": lambda a, b: (a * a + 1.0).log(),
    "sqrt": lambda a, b: (a * a).sqrt(),
    "abs": lambda a, b: a.abs(),
    "sign": lambda a, b: a.sign(),
    "clamp": lambda a, b: a.clamp(0.0, 1.0),
    "where": lambda a, b: cg.where(a > 0, a, b),
    "clone": lambda a, b: a.clone(),
    "double": lambda a, b: a.double(),
    "bias": lambda a, b: a + b[0],
    "compare": lambda a, b: a > b,
    "cumsum": lambda a, b: a.cumsum(2),
}


@pytest.mark.quick
@pytest.mark.parametrize("name", LAYOUT)
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 1, 4, 5), (2, 3, 1, 1), (2, 3, 4)], ids=str)
def test_channels_last_in_channels_last_out(name, shape):
    last = [lib.channels_last(normal(*shape, seed=i)) for i in (0, 1)]
    plain = [np.ascontiguousarray(a) for a in last]
    for a, b in ((last[0], last[1]), (last[0], plain[1]), (plain[0], last[1])):
        x, w = tensor_on(a, True), tensor_on(b, True)
        y = LAYOUT[name](x, w)
        if name in BINARY or a is last[0]:
            assert lib.is_channels_last(y.array)
        np.testing.assert_array_equal(
            values(y), values(LAYOUT[name](tensor_on(plain[0]), tensor_on(plain[1])))
        )
        if y.requires_grad:
            y.sum().backward()
            if a is last[0]:
                assert lib.is_channels_last(x.grad.array)


def test_strided_operands():
    x = normal(4, 6, 5)
    for view in (x[::-1], x[:, ::-2], x.transpose(2, 0, 1), x[:, :, ::2], x[:0]):
        t = tensor_on(view)
        np.testing.assert_array_equal(values(t * 2.0 + t), view * 2 + view)
        np.testing.assert_array_equal(values(-t), -view)
        np.testing.assert_allclose(values(t.exp()), np.exp(view), rtol=1e-6)  # both within 4 ULP
        np.testing.assert_allclose(values(t.sum(1)), view.sum(1), rtol=1e-5, atol=1e-6)


# ---- errors ----


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda x: x + cg.ones(7), ValueError, r"\[add\] .*broadcast.*\(2, 3\) and \(7,\)"),
        (lambda x: x.sum(2), ValueError, r"\[sum\] dim must be an int from -2 to 1.*Got 2"),
        (lambda x: x.mean((0, -2)), ValueError, r"\[mean\] dim .*twice.*\(0, -2\)"),
        (lambda x: x.long().mean(), TypeError, r"\[mean\] .*floating.*int64"),
        (lambda x: x.bool().var(), TypeError, r"\[var\] .*floating.*bool"),
        (lambda x: x.topk(4), ValueError, r"\[topk\] k must be from 0 to .*3\. Got 4"),
        (lambda x: x.clamp(), ValueError, r"\[clamp\] .*None and None"),
        (lambda x: x.clamp(min=cg.ones(1)), TypeError, r"\[clamp\] .*Got Tensor"),
        (lambda x: x[:0].max(), ValueError, r"\[max\] .*at least 1 element.*\(0, 3\)"),
        (lambda x: x[:0].argmin(0), ValueError, r"\[argmin\] .*\(0, 3\)"),
        (lambda x: -x.bool(), TypeError, r"\[neg\] .*bool"),
        (lambda x: x.bool() - x.bool(), TypeError, r"\[sub\] bool"),
        (lambda x: ~x, TypeError, r"\[invert\] .*float"),
        (lambda x: x & x, TypeError, r"\[bitwise_and\] .*float"),
        (lambda x: x.long() ** -1, ValueError, r"\[pow\] .*negative exponent.*-1"),
        (lambda x: cg.where(x, x, x), TypeError, r"\[where\] condition must be bool.*float32"),
        (lambda x: x.argsort(5), ValueError, r"\[argsort\] .*Got 5"),
        (lambda x: x.sum("a"), ValueError, r"\[sum\] .*Got 'a'"),
    ],
)
def test_errors(call, error, words):
    with pytest.raises(error, match=words):
        call(cg.ones(2, 3))


def test_comparison_helpers():
    a = cg.tensor([1.0, 2.0])
    assert cg.equal(a, a.clone()) and not cg.equal(a, cg.tensor([1.0])) and not a.equal(a + 1.0)
    assert cg.allclose(a, a + 1e-7) and not a.allclose(a + 1.0)
    assert cg.allclose(a * float("nan"), a * float("nan"), equal_nan=True)


def test_where(torch):
    condition = normal(3, 4) > 0
    ours = lambda a, b: cg.where(cg.tensor(condition), a, b)  # noqa: E731
    theirs = lambda a, b: torch.where(torch.tensor(condition), a, b)  # noqa: E731
    assert_parity(torch, ours, theirs, [normal(3, 4), normal(4, seed=1)])
    assert_parity(torch, ours, theirs, [normal(2, 1, 4), normal(3, 1, seed=1)])
    assert_parity(torch, lambda a: ours(a, 0.0), lambda a: theirs(a, 0.0), [normal(3, 4)])
    y = cg.where(cg.tensor(condition), 1, 0)
    assert y.dtype == cg.int64 and y.tolist() == condition.astype(int).tolist()


def test_result_type():
    assert cg_math.result_type(cg.ones(2), 1.0) == np.float32
    assert cg_math.result_type(cg.ones(2, dtype=cg.int64), 1.0) == np.float32
