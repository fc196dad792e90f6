"""Reshaping, permuting, joining, repeating and indexing against NumPy and PyTorch."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import convgrad as cg
from tests.device import lib, raises_for_value, tensor_on, values

from .helpers import (
    assert_gradients,
    assert_parity,
    assert_same_bits_for_any_threads,
    forward_and_gradients,
    integers,
)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


ONE = {
    "reshape": lambda x: x.reshape(6, 4, 5),
    "reshape_tuple": lambda x: x.reshape((4, -1)),
    "view": lambda x: x.view(2, 3, 2, 10),
    "view_-1": lambda x: x.view(-1),
    "flatten": lambda x: x.flatten(),
    "flatten_1": lambda x: x.flatten(1),
    "flatten_middle": lambda x: x.flatten(1, 2),
    "flatten_end": lambda x: x.flatten(start_dim=-2),
    "unflatten": lambda x: x.unflatten(2, (2, -1)),
    "permute": lambda x: x.permute(0, 2, 3, 1),
    "permute_tuple": lambda x: x.permute((3, -2, 0, 1)),
    "transpose": lambda x: x.transpose(1, 3),
    "swapaxes": lambda x: x.swapaxes(0, -1),
    "movedim": lambda x: x.movedim(1, -1),
    "T": lambda x: x[0, 0].T,
    "t": lambda x: x[0, 0].t(),
    "squeeze": lambda x: x[:, :1].squeeze(),
    "squeeze_dim": lambda x: x[:, :1].squeeze(1),
    "squeeze_other": lambda x: x[:, :1].squeeze(0),
    "squeeze_dims": lambda x: x[:1, :1].squeeze((0, 1)),
    "unsqueeze": lambda x: x.unsqueeze(0),
    "unsqueeze_last": lambda x: x.unsqueeze(-1),
    "expand": lambda x: x[:, :1].expand(2, 6, 4, 5),
    "expand_-1": lambda x: x[:, :1].expand(3, -1, 6, -1, -1),
    "repeat": lambda x: x.repeat(1, 2, 1, 3),
    "repeat_more": lambda x: x.repeat(2, 1, 1, 2, 1),
    "repeat_0": lambda x: x.repeat(1, 0, 1, 1),
    "chunk": lambda x: x.chunk(2, 1)[1],
    "chunk_uneven": lambda x: x.chunk(3, dim=-1)[2],
    "split": lambda x: x.split(2, dim=3)[1],
    "split_list": lambda x: x.split([1, 2], 1)[1] * 2,
    "reshape_after_permute": lambda x: x.permute(0, 3, 1, 2).reshape(2, 15, 4),
    "int": lambda x: x[1],
    "ints": lambda x: x[1, -1, 2],
    "all_ints": lambda x: x[1, 2, 3, 4],
    "slices": lambda x: x[:, 1:, ::2, -3:],
    "none": lambda x: x[:, None, 1],
    "ellipsis": lambda x: x[..., 2],
    "ellipsis_middle": lambda x: x[1, ..., 1:3],
    "empty_slice": lambda x: x[1:1],
    "mask": lambda x: x[x > 0],
    "mask_front": lambda x: x[(x > 0)[:, :, 0, 0]],
    "everything": lambda x: x[...],
}


@pytest.mark.parametrize("name", ONE)
def test_parity_of_one_operand(torch, name):
    assert_parity(torch, ONE[name], ONE[name], [normal(2, 3, 4, 5)], 1e-6, 1e-6)


@pytest.mark.parametrize("name", [n for n in ONE if "mask" not in n])
def test_any_layout_gives_the_same(name):
    x = normal(2, 3, 4, 5)
    dy = normal(*ONE[name](cg.tensor(x)).shape, seed=1)
    expected = forward_and_gradients(ONE[name], [x], dy)
    for array in (lib.channels_last(x), x.copy(), np.repeat(x, 2, 3)[..., ::2]):
        t = tensor_on(array, True)
        y = ONE[name](t)
        y.backward(tensor_on(dy))
        np.testing.assert_array_equal(values(y), expected[0])
        np.testing.assert_array_equal(values(t.grad), expected[1])


@pytest.mark.quick
def test_gradients_of_copies_and_picks():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 3, 4, 5))
    for name in ("repeat_more", "expand", "flatten_1", "permute", "slices", "mask", "split_list"):
        assert_gradients(ONE[name], [x], rng)
    rows = cg.tensor([1, 0, 1, 1])
    assert_gradients(lambda t: t[rows], [x], rng)
    assert_gradients(lambda t: t[:, rows, rows], [x], rng)


# ---- cat, stack ----


@pytest.mark.quick
@pytest.mark.parametrize("dim", [0, 1, 2, -1])
def test_cat_and_stack(torch, dim):
    shapes = [(2, 3, 4), (2, 3, 4)]
    arrays = [normal(*s, seed=i) for i, s in enumerate(shapes)]
    assert_parity(
        torch, lambda a, b: cg.cat([a, b], dim), lambda a, b: torch.cat([a, b], dim), arrays
    )
    assert_parity(
        torch, lambda a, b: cg.stack((a, b), dim), lambda a, b: torch.stack((a, b), dim), arrays
    )
    longer = list(shapes[1])
    longer[dim] = 7
    arrays[1] = normal(*longer)
    assert_parity(
        torch, lambda a, b: cg.cat((a, b, a), dim), lambda a, b: torch.cat((a, b, a), dim), arrays
    )


def test_cat_of_types(torch):
    for a, b in (
        ("float32", "int64"),
        ("float32", "float64"),
        ("uint8", "int32"),
        ("bool", "bool"),
    ):
        ours = cg.cat([cg.ones(2, dtype=a), cg.zeros(1, dtype=b)])
        theirs = torch.cat(
            [torch.ones(2, dtype=getattr(torch, a)), torch.zeros(1, dtype=getattr(torch, b))]
        )
        assert ours.dtype.name == str(theirs.dtype).removeprefix("torch.")
        np.testing.assert_array_equal(values(ours), theirs.numpy())


def test_cat_is_channels_last():
    for shape in ((2, 3, 4, 5), (2, 1, 4, 5), (2, 3, 1, 1)):
        x = tensor_on(lib.channels_last(normal(*shape)), True)
        plain = tensor_on(normal(*shape), True)
        y = cg.cat([x, plain, x], 1)
        assert lib.is_channels_last(y.array)
        y.sum().backward()
        assert lib.is_channels_last(x.grad.array) and lib.is_channels_last(plain.grad.array)
        assert lib.is_channels_last(x[cg.tensor([1, 0, 1])].array)


# ---- indexing ----


def torch_index(torch, index):
    """The same index for PyTorch."""
    parts = index if isinstance(index, tuple) else (index,)
    return tuple(torch.tensor(p) if isinstance(p, np.ndarray) else p for p in parts)


PICKS = [
    np.array([1, 0, 1, 1]),
    np.array([-1, 0]),
    np.array([[0, 1], [1, 1]]),
    np.array([], np.int64),
    (slice(None), np.array([2, 0, 2])),
    (np.array([0, 1, 0]), np.array([2, 2, 2])),
    (np.array([[0], [1]]), np.array([0, 2])),
    (slice(None), np.array([2, 0]), slice(1, 3), np.array([4, 4])),
    (0, np.array([1, 1]), None, slice(None, None, 2)),
    (..., np.array([4, 0, 4])),
    (np.array([True, False]), ...),
    (slice(None), np.array([True, False, True]), 1),
    np.array([0, 1], np.int32),
]


@pytest.mark.parametrize("index", PICKS, ids=lambda i: str(i).replace("\n", ""))
def test_parity_of_array_indices(torch, index):
    theirs_index = torch_index(torch, index)
    assert_parity(
        torch, lambda x: x[index], lambda x: x[theirs_index], [normal(2, 3, 4, 5)], atol=1e-6
    )
    parts = index if isinstance(index, tuple) else (index,)
    tensors = tuple(cg.tensor(p) if isinstance(p, np.ndarray) else p for p in parts)
    x = cg.tensor(normal(2, 3, 4, 5))
    np.testing.assert_array_equal(values(x[tensors]), values(x[index]))


def test_lists_and_scalars_as_indices(torch):
    x = normal(4, 3)
    for index in ([1, 0, 1], [True, False, True, False], np.int64(2), ([0, 1], [1, 2]), (-1, [0])):
        theirs = torch.tensor(x)[index]
        np.testing.assert_array_equal(values(cg.tensor(x)[index]), theirs.numpy())
    assert cg.tensor(x)[cg.tensor(2)].shape == (3,)


def test_duplicates_are_summed_in_index_order():
    """1e8 + 1 - 1e8 depends on the order in float32: it must be the index's."""
    dy = np.array([1e8, 1, -1e8, 0.5, 3], np.float32)
    for index in (np.array([0, 0, 0, 0, 1]), (np.array([0, 0, 0, 0, 1]), np.zeros(5, np.int64))):
        shape = (2,) if isinstance(index, np.ndarray) else (2, 1)
        x = cg.zeros(*shape, requires_grad=True)
        x[index].backward(cg.tensor(dy))
        expected = ((dy[0] + dy[1]) + dy[2]) + dy[3]
        assert values(x.grad).ravel().tolist() == [expected, 3]


def test_index_gradient_same_bits_for_any_threads():
    rng = np.random.default_rng(3)
    x, index = normal(50, 40, 3), rng.integers(0, 50, 400)
    dy = normal(400, 40, 3)

    def run():
        return forward_and_gradients(lambda t: t[index], [x], dy)

    assert_same_bits_for_any_threads(run)


@given(st.data())
@settings(max_examples=120, deadline=None)
def test_drawn_indices(data):
    shape = data.draw(hnp.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=4))
    basic = hnp.basic_indices(shape, allow_newaxis=True, allow_ellipsis=True)
    advanced = hnp.integer_array_indices(shape)
    masks = hnp.arrays(np.bool_, shape)
    index = data.draw(st.one_of(basic, advanced, masks))
    rng = np.random.default_rng(0)
    x = integers(rng, shape)
    expected = np.asarray(x[index])
    dy = integers(rng, expected.shape)
    y, dx = forward_and_gradients(lambda t: t[index], [x], dy)
    np.testing.assert_array_equal(y, expected)
    oracle = np.zeros(shape)
    np.add.at(oracle, index, dy)
    np.testing.assert_array_equal(dx, oracle)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_drawn_reshapes_and_permutations(data):
    shape = data.draw(hnp.array_shapes(min_dims=1, max_dims=5, min_side=0, max_side=4))
    order = data.draw(st.permutations(range(len(shape))))
    x = integers(np.random.default_rng(1), shape)
    dy = integers(np.random.default_rng(2), (x.size,))
    y, dx = forward_and_gradients(lambda t: t.permute(order).reshape(x.size), [x], dy)
    np.testing.assert_array_equal(y, x.transpose(order).ravel())
    back = dy.reshape([shape[i] for i in order]).transpose(np.argsort(order))
    np.testing.assert_array_equal(dx, back)


def test_gather(torch):
    index = np.random.default_rng(0).integers(0, 3, (2, 4, 5))
    for dim in (1, -2):
        assert_parity(
            torch,
            lambda x, d=dim: x.gather(d, cg.tensor(index)),
            lambda x, d=dim: x.gather(d, torch.tensor(index)),
            [normal(2, 3, 5)],
        )


# ---- writing ----


@pytest.mark.quick
def test_assignment():
    x = cg.zeros(2, 3)
    before = x.version[0]
    x[0] = 1.0
    x[:, 1] = cg.tensor([5.0, 6.0])
    x[x == 0] = -1
    x[cg.tensor([1]), cg.tensor([2])] = np.float64(9)
    assert x.tolist() == [[1, 5, 1], [-1, 6, 9]] and x.version[0] == before + 4
    w = cg.zeros(2, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"\[\[\.\.\.\] =\] .*\(2,\).*no_grad"):
        w[0] = 1.0
    with cg.no_grad():
        w[0] = 1.0
    assert w.tolist() == [1, 0]
    with pytest.raises(RuntimeError, match="not recorded"):
        x[0] = w[0]
    with pytest.raises(ValueError, match="expanded memory"):
        cg.zeros(1).expand(4)[0] = 1.0


# ---- errors ----


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda x: x.reshape(7), ValueError, r"\[reshape\] .*6 elements of \(2, 3\)\. Got \(7,\)"),
        (lambda x: x.reshape(-1, -1), ValueError, r"\[reshape\] Only one.*\(-1, -1\)"),
        (lambda x: x.reshape(-1, 4), ValueError, r"\[reshape\] .*Got \(-1, 4\)"),
        (lambda x: x.reshape(-2, 3), ValueError, r"\[reshape\] .*\(-2, 3\)"),
        (lambda x: x.reshape(2.0, 3), TypeError, r"\[reshape\] Sizes must be ints.*2\.0"),
        (lambda x: x.flatten(1, 0), ValueError, r"\[flatten\] .*Got 1 and 0"),
        (lambda x: x.unflatten(1, (2, 2)), ValueError, r"\[unflatten\] .*Got \(2, 2\)"),
        (lambda x: x.permute(0, 0), ValueError, r"\[permute\] .*Got \(0, 0\)"),
        (lambda x: x.permute(0), ValueError, r"\[permute\] .*Got \(0,\)"),
        (lambda x: x.transpose(0, 2), ValueError, r"\[transpose\] .*Got 2"),
        (lambda x: x.unsqueeze(4), ValueError, r"\[unsqueeze\] .*-3 to 2.*Got 4"),
        (lambda x: x.expand(3, 3), ValueError, r"\[expand\] .*\(2, 3\) to \(3, 3\)"),
        (lambda x: x.expand(3), ValueError, r"\[expand\] .*\(2, 3\) to \(3,\)"),
        (lambda x: x.repeat(2), ValueError, r"\[repeat\] .*\(2, 3\)\. Got \(2,\)"),
        (lambda x: x.split(0), ValueError, r"\[split\] .*Got 0"),
        (lambda x: x.split([1, 2]), ValueError, r"\[split\] .*sum to 2.*Got \[1, 2\]"),
        (lambda x: x.chunk(0), ValueError, r"\[chunk\] .*Got 0"),
        (lambda x: cg.cat([]), ValueError, r"\[cat\] .*none"),
        (lambda x: cg.cat([x, cg.ones(3, 3)], 1), ValueError, r"\(2, 3\) and \(3, 3\)"),
        (lambda x: cg.cat([x, cg.ones(2)]), ValueError, r"\[cat\] .*\(2, 3\) and \(2,\)"),
        (lambda x: cg.cat([cg.ones(())]), ValueError, r"\[cat\] .*\(\)"),
        (lambda x: cg.stack([x, x.T]), ValueError, r"\[stack\] .*\(2, 3\) and \(3, 2\)"),
        (lambda x: x[5], IndexError, r"5"),
        (lambda x: x[0, 0, 0], IndexError, r"3"),
        (lambda x: x[0.5], IndexError, r"\[index\] .*Got float64"),
        (lambda x: x[cg.ones(2)], IndexError, r"\[index\] .*Got float32"),
        (lambda x: x[cg.ones(3).bool()], IndexError, r"2.*3|3.*2"),
        (lambda x: x.gather(0, cg.ones(2)), ValueError, r"\[gather\] .*float32 of shape \(2,\)"),
        (lambda x: x.unsqueeze(0).t(), ValueError, r"\[t\] .*\(1, 2, 3\)"),
    ],
)
def test_errors(call, error, words):
    with pytest.raises(error, match=words):
        call(cg.ones(2, 3))


def test_index_out_of_range():
    with raises_for_value(IndexError, r"\[index_rows\].*from -2 to 1. Got 3", 3):
        cg.ones(2, 3)[cg.tensor([3])]
