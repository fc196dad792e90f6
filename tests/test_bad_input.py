"""Arguments of the wrong kind: every function says in words what it got, and never crashes."""

import re

import numpy as np
import pytest

import convgrad as cg
import convgrad.functional as F

ARRAY = np.ones((2, 3, 4, 4), np.float32)
X = cg.tensor(ARRAY)
W = cg.ones(5, 3, 1, 1)
ROWS, CLASSES = cg.ones(2, 3), cg.tensor([0, 1])

# (call, what the TypeError must say)
STRANGERS = [
    (lambda: F.conv2d(X, ARRAY), r"[conv2d] weight must be a Tensor. Got ndarray float32 (2, 3, 4"),
    (
        lambda: F.conv2d(X, np.float32),
        r"[conv2d] weight must be a Tensor. Got <class 'numpy.float32'>.",
    ),
    (lambda: F.conv2d(X, None), r"[conv2d] weight must be a Tensor. Got None."),
    (lambda: F.conv_transpose2d(X, "w"), r"[conv_transpose2d] weight must be a Tensor. Got 'w'."),
    (
        lambda: F.conv2d([1], W),
        r"[conv2d] An argument is of the wrong type. Got input=[1], weight=",
    ),
    (lambda: F.conv2d(X, W, None, groups=None), r"stride=1, padding=0, dilation=1, groups=None."),
    (lambda: F.avg_pool2d("x", 2), r"[avg_pool2d] An argument is of the wrong type. Got input='x'"),
    (lambda: F.max_pool2d(None, 2), r"[max_pool2d] An argument is of the wrong type. Got input=No"),
    (lambda: F.max_unpool2d(X, X, None), r"[max_unpool2d] kernel_size must be an int or a tuple"),
    (lambda: F.max_unpool2d(X, X, 2, output_size=4), r"output_size must be a tuple of ints. Got 4"),
    (
        lambda: F.max_unpool2d(X, X, 2, (1.5, 1)),
        r"stride must be an int or a tuple of ints. Got (1",
    ),
    (
        lambda: F.pad(ARRAY, (1, 1)),
        r"[pad] input must be a Tensor. Got ndarray float32 (2, 3, 4, 4)",
    ),
    (lambda: F.pad(X, (1, None)), r"[pad] pad must be a tuple of ints. Got (1, None)."),
    (lambda: F.pad(X, 1), r"[pad] pad must be a tuple of ints. Got 1."),
    (lambda: F.interpolate(ARRAY, 2), r"[interpolate] input must be a Tensor. Got ndarray"),
    (lambda: F.softmax(ARRAY, 1), r"[softmax] input must be a Tensor. Got ndarray"),
    (lambda: F.dropout2d(3), r"[dropout2d] input must be a Tensor. Got 3."),
    (lambda: F.maxout(3, 1), r"[maxout] input must be a Tensor. Got 3."),
    (lambda: F.maxout(X, None), r"[maxout] An argument is of the wrong type. Got input=Tensor"),
    (lambda: F.one_hot([1]), r"[one_hot] tensor must be a Tensor. Got [1]."),
    (lambda: F.nll_loss(ROWS, [0, 1]), r"[nll_loss] target must be a Tensor. Got [0, 1]."),
    (lambda: F.cross_entropy(ROWS, [0, 1]), r"[cross_entropy] An argument is of the wrong type."),
    (lambda: F.cross_entropy(ROWS, CLASSES, reduction=None), r"reduction=None, label_smoothing=0"),
    (lambda: F.cross_entropy(ROWS, CLASSES, label_smoothing="a"), r"smoothing must be a number."),
    (lambda: F.mse_loss(ROWS, ROWS, None), r"[mse_loss] An argument is of the wrong type."),
    (lambda: F.huber_loss(ROWS, ROWS, delta="a"), r"[huber_loss] delta must be a number. Got 'a'."),
    (lambda: F.multi_margin_loss(ROWS, CLASSES, 1, None), r"margin must be a number. Got None."),
    (lambda: F.margin_ranking_loss(ROWS, CLASSES, 3), r"[margin_ranking_loss] An argument is of"),
    (
        lambda: F.margin_ranking_loss(cg.tensor([1]), cg.ones(1), cg.ones(1)),
        r"[margin_ranking_loss] An argument is of the wrong type. Got input1=Tensor int64 (1,)",
    ),
    (lambda: F.prelu(X, None), r"[prelu] weight must be"),
    (lambda: F.mse_loss(cg.tensor(1.0), None), r"[mse_loss] An argument is of the wrong type."),
    (lambda: F.linear(ROWS, None), r"[linear] weight must be"),
    (
        lambda: F.batch_norm(X, None, None, training=True, momentum="x"),
        r"momentum must be a number. Got str.",
    ),
    (lambda: F.dice_loss(X, X, None), r"[dice_loss] smooth must be a number. Got None."),
]


@pytest.mark.parametrize("call, text", STRANGERS, ids=[text[:60] for _, text in STRANGERS])
def test_what_is_no_tensor_or_number_is_named(call, text):
    with pytest.raises(TypeError, match=re.escape(text)) as caught:
        call()
    assert str(caught.value).startswith("[")


@pytest.mark.parametrize("dim", ["a", (0, 1), 1.5])
def test_an_axis_must_be_an_int(dim):
    for call in (F.softmax, F.log_softmax):
        text = f"dim must be an axis of the input. Got {dim}"
        with pytest.raises(ValueError, match=re.escape(text)):
            call(X, dim)
    with pytest.raises(ValueError, match=re.escape(f"and dim {dim}.")):
        F.maxout(X, 3, dim)
    assert F.softmax(X, np.int64(1)).shape == X.shape


def test_a_users_function_keeps_its_own_errors():
    class Mine(cg.autograd.Function):
        @staticmethod
        def forward(ctx, x, mode):
            raise AttributeError("mine")

    with pytest.raises(AttributeError, match="^mine$"):
        Mine.apply(X, "mode")


@pytest.mark.parametrize(
    "call, text",
    [
        (lambda: F.interpolate(X, scale_factor=1e18), "size must be at most 1073741824 per axis"),
        (lambda: F.interpolate(X, 2**31, mode="bilinear"), "Got (2147483648, 2147483648)."),
        (lambda: F.pad(X, (2**62, 0, 0, 0), "replicate"), "Got 4611686018427387904 and 0."),
        (lambda: F.pad(X, (2**63 - 1, 2**63 - 1, 1, 1), "replicate"), "at most 1073741824."),
        (lambda: F.pad(X, (-(2**63), 1, 0, 0), "circular"), "Got -9223372036854775808 and 1."),
    ],
)
def test_sizes_that_no_memory_holds_are_refused(call, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        call()


def test_no_channels():
    empty = cg.zeros(2, 0, 3)
    for call in (lambda: F.group_norm(empty, 1), lambda: F.batch_norm(empty, None, None)):
        with pytest.raises(ValueError, match=r"at least 1 channel .*Got shape \(2, 0, 3\)"):
            call()
    with pytest.raises(ValueError, match=r"per channel .*Got weight \(0,\) for input \(2, 0, 3\)"):
        F.prelu(empty, cg.zeros(0))
