"""Every layer beside PyTorch's: state-dict keys and shapes, repr, and forward after loading its
state. The ops themselves are proven in their own files."""

import copy
import inspect

import numpy as np
import pytest

import convgrad as cg
from convgrad import nn
from tests.device import values

SIGNAL, IMAGE, VOLUME = (2, 4, 9), (2, 4, 8, 7), (2, 4, 5, 6, 7)
BY_RANK = {1: SIGNAL, 2: IMAGE, 3: VOLUME}

# (how to make the layer from a namespace, the shape of its input)
CASES = {}


def case(name, make, shape):
    CASES[name] = make, shape


for d, shape in BY_RANK.items():
    for pattern, arguments in [
        ("Conv{}d", ((4, 6, 3), {})),
        ("Conv{}d", ((4, 6, 3, 2, 1, 1, 2, False), {})),
        ("Conv{}d", ((4, 2), dict(kernel_size=3, padding="same", dilation=2))),
        ("Conv{}d", ((4, 2, 3), dict(padding=2, padding_mode="reflect"))),
        ("Conv{}d", ((4, 2, 2), dict(padding="same", padding_mode="replicate"))),
        ("Conv{}d", ((4, 2, 3), dict(padding=1, padding_mode="circular", stride=2))),
        ("ConvTranspose{}d", ((4, 6, 3), {})),
        ("ConvTranspose{}d", ((4, 6, 3, 2, 1, 1, 2, False), {})),
        ("ConvTranspose{}d", ((4, 6), dict(kernel_size=2, dilation=2))),
        ("MaxPool{}d", ((2,), {})),
        ("MaxPool{}d", ((3, 2, 1, 1, False, True), {})),
        ("AvgPool{}d", ((3, 2, 1), dict(ceil_mode=True, count_include_pad=False))),
        ("AdaptiveAvgPool{}d", ((3,), {})),
        ("AdaptiveMaxPool{}d", ((2,), {})),
        ("BatchNorm{}d", ((4,), {})),
        ("BatchNorm{}d", ((4, 1e-3, None), {})),
        ("BatchNorm{}d", ((4,), dict(affine=False, track_running_stats=False))),
        ("InstanceNorm{}d", ((4,), {})),
        ("InstanceNorm{}d", ((4, 1e-3, 0.2, True, True), {})),
        ("Dropout{}d", ((0.0,), {})),
        ("ConstantPad{}d", ((1, 2.5), {})),
        ("ZeroPad{}d", ((2,), {})),
        ("ReflectionPad{}d", ((tuple(range(2 * d)) if d < 3 else 2,), {})),
        ("ReplicationPad{}d", ((tuple(range(2 * d)),), {})),
        ("CircularPad{}d", ((1,), {})),
    ]:
        name = pattern.format(d)
        case(
            f"{name}-{len(CASES)}",
            lambda t, name=name, a=arguments: getattr(t, name)(*a[0], **a[1]),
            shape,
        )

for name, arguments in [
    ("ReLU", ()), ("ReLU", (True,)), ("ReLU6", ()), ("LeakyReLU", ()), ("LeakyReLU", (0.2, True)),
    ("PReLU", ()), ("PReLU", (4, 0.1)), ("ELU", ()), ("ELU", (0.5,)), ("SELU", ()), ("SiLU", ()),
    ("GELU", ()), ("GELU", ("tanh",)), ("Softplus", ()), ("Softplus", (2.0, 1.0)),
    ("Hardtanh", ()), ("Hardtanh", (-0.5, 0.2)), ("Sigmoid", ()), ("Tanh", ()),
    ("LogSigmoid", ()), ("Softsign", ()), ("Mish", ()), ("Hardsigmoid", ()), ("Hardswish", ()),
    ("Softmax", (1,)), ("LogSoftmax", (-1,)), ("Dropout", (0.0,)), ("Identity", (1, 2)),
    ("Flatten", ()), ("Flatten", (0, 2)), ("GroupNorm", (2, 4)), ("GroupNorm", (4, 4, 1e-2, False)),
    ("LayerNorm", (7,)), ("LayerNorm", ((8, 7), 1e-3)), ("LayerNorm", (7, 1e-5, False)),
    ("Linear", (7, 3)), ("Linear", (7, 3, False)), ("Unflatten", (1, (2, -1))),
    ("Upsample", (None, 2)), ("Upsample", ((5, 9), None, "bilinear", True)),
    ("AvgPool2d", ((2, 3), None, 0, False, True, 5)), ("AdaptiveAvgPool2d", ((2, None),)),
    ("BatchNorm1d", (7,)),
]:  # fmt: skip
    where = (5, 7) if name == "BatchNorm1d" else IMAGE
    make = lambda t, name=name, a=arguments: getattr(t, name)(*a)  # noqa: E731
    if name == "Unflatten":  # PyTorch takes no -1 in a plain tuple
        make = lambda t: t.Unflatten(1, (2, 2))  # noqa: E731
    case(f"{name}-{len(CASES)}", make, where)


def without_bias(text):
    """Only newer PyTorch has `bias` in the reprs of normalisation layers."""
    return text.replace(", bias=True", "").replace(", bias=False", "")


@pytest.mark.parametrize("name", CASES)
def test_layer_is_pytorchs(torch, name):
    make, shape = CASES[name]
    theirs, ours = make(torch.nn), make(nn)
    assert without_bias(repr(ours)) == without_bias(repr(theirs))
    rng = np.random.default_rng(len(name))
    with torch.no_grad():
        for t in theirs.state_dict().values():
            if t.is_floating_point():
                t += torch.tensor(0.3 * rng.random(tuple(t.shape)), dtype=t.dtype)
    state = {k: v.numpy() for k, v in theirs.state_dict().items()}
    assert {k: (v.shape, v.dtype) for k, v in state.items()} == {
        k: (v.shape, v.array.dtype) for k, v in ours.state_dict().items()
    }
    assert list(state) == list(ours.state_dict())
    ours.load_state_dict(state)
    for training in (True, False):
        theirs.train(training)
        ours.train(training)
        x = rng.standard_normal(shape).astype(np.float32)
        y = values(ours(cg.tensor(x)))
        np.testing.assert_allclose(
            y, theirs(torch.tensor(x)).detach().numpy(), rtol=1e-4, atol=1e-5
        )
    for key, value in theirs.state_dict().items():  # running statistics
        np.testing.assert_allclose(
            values(ours.state_dict()[key]), value.numpy(), rtol=1e-4, atol=1e-5, err_msg=key
        )
    clone = copy.deepcopy(ours)
    np.testing.assert_array_equal(values(clone(cg.tensor(x))), y)


def test_max_unpool(torch):
    for d, shape in BY_RANK.items():
        x = np.random.default_rng(d).standard_normal(shape).astype(np.float32)
        outputs = []
        for t, tensor in ((nn, cg.tensor), (torch.nn, torch.tensor)):
            pool = getattr(t, f"MaxPool{d}d")(2, return_indices=True)
            unpool = getattr(t, f"MaxUnpool{d}d")(2)
            y, indices = pool(tensor(x))
            outputs.append((repr(unpool), unpool(y, indices, output_size=shape)))
        assert outputs[0][0] == outputs[1][0]
        np.testing.assert_array_equal(values(outputs[0][1]), outputs[1][1].numpy())


def test_transposed_output_size(torch):
    for d, shape in BY_RANK.items():
        theirs = getattr(torch.nn, f"ConvTranspose{d}d")(4, 3, 3, stride=2, padding=1)
        ours = getattr(nn, f"ConvTranspose{d}d")(4, 3, 3, stride=2, padding=1)
        ours.load_state_dict({k: v.numpy() for k, v in theirs.state_dict().items()})
        x = np.random.default_rng(d).standard_normal(shape).astype(np.float32)
        sizes = [2 * n for n in shape[2:]]
        for size in (sizes, [2, 3, *sizes], None):
            y = values(ours(cg.tensor(x), output_size=size))
            expected = theirs(torch.tensor(x), output_size=size).detach().numpy()
            assert y.shape == expected.shape
            np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    layer = nn.ConvTranspose2d(4, 3, 3, stride=2)
    with pytest.raises(ValueError, match=r"from \(17, 15\) to \(18, 16\).*Got \(19, 15\)"):
        layer(cg.tensor(np.zeros(IMAGE, np.float32)), output_size=(19, 15))


def probabilities(rng, shape):
    return rng.uniform(0.1, 0.9, shape).astype(np.float32)


def signs(rng, shape):
    return rng.choice([-1.0, 1.0], shape).astype(np.float32)


def classes(rng, shape):
    return rng.integers(0, 5, shape[0])


def normal(rng, shape):
    return rng.standard_normal(shape).astype(np.float32)


WEIGHT = np.array([1.0, 2.0, 0.5, 0.0, 3.0], np.float32)
LOSSES = [
    ("CrossEntropyLoss", lambda t: dict(label_smoothing=0.1), (normal, classes)),
    ("CrossEntropyLoss", lambda t: dict(weight=t(WEIGHT), ignore_index=1), (normal, classes)),
    ("NLLLoss", lambda t: dict(weight=t(WEIGHT)), (normal, classes)),
    ("BCELoss", lambda t: dict(weight=t(WEIGHT)), (probabilities, probabilities)),
    ("BCEWithLogitsLoss", lambda t: dict(pos_weight=t(WEIGHT)), (normal, probabilities)),
    ("HingeEmbeddingLoss", lambda t: dict(margin=0.7), (normal, signs)),
    ("MultiMarginLoss", lambda t: dict(p=2, margin=0.5, weight=t(WEIGHT)), (normal, classes)),
    ("MarginRankingLoss", lambda t: dict(margin=0.3), (normal, normal, signs)),
    ("SoftMarginLoss", lambda t: {}, (normal, signs)),
    ("MSELoss", lambda t: {}, (normal, normal)),
    ("L1Loss", lambda t: {}, (normal, normal)),
    ("SmoothL1Loss", lambda t: dict(beta=0.5), (normal, normal)),
]


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("index", range(len(LOSSES)), ids=lambda i: LOSSES[i][0])
def test_loss_is_pytorchs(torch, index, reduction):
    name, arguments, kinds = LOSSES[index]
    theirs = getattr(torch.nn, name)(reduction=reduction, **arguments(torch.tensor))
    ours = getattr(nn, name)(reduction=reduction, **arguments(cg.tensor))
    assert repr(ours) == repr(theirs) and ours.reduction == reduction
    assert list(ours.state_dict()) == list(theirs.state_dict())
    rng = np.random.default_rng(0)
    arrays = [kind(rng, (6, 5)) for kind in kinds]
    got = values(ours(*map(cg.tensor, arrays)))
    expected = theirs(*map(torch.tensor, arrays)).numpy()
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.quick
def test_layers_of_our_own():
    rng = np.random.default_rng(0)
    x = cg.tensor(normal(rng, (2, 6, 5)))
    np.testing.assert_array_equal(
        values(nn.Maxout(3)(x)), values(x).reshape(2, 2, 3, 5).max(axis=2)
    )
    assert repr(nn.Maxout(3)) == "Maxout(k=3)"
    y, t = cg.tensor(normal(rng, (8,))), cg.tensor(signs(rng, (8,)))
    np.testing.assert_allclose(
        values(nn.HingeLoss()(y, t)), np.maximum(0, 1 - values(t) * values(y)).mean(), rtol=1e-6
    )
    logits, target = cg.tensor(normal(rng, (2, 3, 4, 4))), cg.tensor(rng.integers(0, 3, (2, 4, 4)))
    loss = nn.DiceLoss(smooth=1.0)
    assert 0 < float(values(loss(logits, target))) < 1 and repr(loss) == "DiceLoss(smooth=1.0)"


@pytest.mark.parametrize("d", [1, 2, 3])
def test_locally_connected(d):
    layer = getattr(nn, f"LocallyConnected{d}d")(2, 3, 6, 3, stride=2, padding=1)
    assert layer.output_size == (3,) * d
    assert layer.weight.shape == (3, 2, *(3,) * d, *(3,) * d)
    x = cg.tensor(normal(np.random.default_rng(d), (2, 2, *(6,) * d)))
    assert layer(x).shape == (2, 3, *(3,) * d)
    # With the same weights at every position it is a convolution.
    conv = getattr(nn, f"Conv{d}d")(2, 3, 3, stride=2, padding=1)
    shared = values(conv.weight).reshape(3, 2, *(1,) * d, *(3,) * d)
    layer.weight.detach().copy_(cg.tensor(shared))
    layer.bias.detach().copy_(cg.tensor(values(conv.bias).reshape(3, *(1,) * d)))
    np.testing.assert_allclose(values(layer(x)), values(conv(x)), rtol=1e-4, atol=1e-5)
    none = getattr(nn, f"LocallyConnected{d}d")(2, 3, 6, 3, bias=False)
    assert none.bias is None and "bias=False" in repr(none)
    with pytest.raises(ValueError, match=r"fit into the padded input. Got input_size \(2"):
        getattr(nn, f"LocallyConnected{d}d")(1, 1, 2, 3)


@pytest.mark.quick
def test_parameter_counts_of_the_lecture():
    def count(module):
        return sum(p.array.size for p in module.parameters())

    assert count(nn.Linear(150, 150, bias=False)) == 22_500
    assert count(nn.LocallyConnected1d(1, 1, 150, 3, padding=1, bias=False)) == 450
    assert count(nn.Conv1d(1, 1, 3, padding=1, bias=False)) == 3
    assert count(nn.Linear(784, 10)) == 7_850


def test_every_layer_is_covered():
    """A layer of nn that PyTorch has too must be in a table above."""
    covered = {name.split("-")[0] for name in CASES} | {name for name, _, _ in LOSSES}
    elsewhere = {
        "Module", "Sequential", "ModuleList", "ModuleDict", "ParameterList", "ParameterDict",
        "MaxUnpool1d", "MaxUnpool2d", "MaxUnpool3d", "LocallyConnected1d", "LocallyConnected2d",
        "LocallyConnected3d", "Maxout", "HingeLoss", "DiceLoss",
    }  # fmt: skip
    layers = {
        name for name, value in vars(nn).items()
        if inspect.isclass(value) and issubclass(value, nn.Module) and not name.startswith("_")
    }  # fmt: skip
    assert layers == covered | elsewhere


def test_dropout_follows_training_mode():
    x = cg.tensor(np.ones((4, 8, 10, 10), np.float32))
    for layer, whole in ((nn.Dropout(0.5), False), (nn.Dropout2d(0.5), True)):
        y = values(layer(x))
        assert set(np.unique(y)) == {0.0, 2.0}
        per_channel = y.reshape(32, 100)
        assert (per_channel.min(1) == per_channel.max(1)).all() == whole
        np.testing.assert_array_equal(values(layer.eval()(x)), values(x))
    with pytest.raises(ValueError, match=r"\[Dropout1d\] p must be from 0 to 1. Got 1.5"):
        nn.Dropout1d(1.5)


@pytest.mark.quick
def test_errors_in_words():
    x = cg.tensor(np.zeros((2, 4, 5), np.float32))
    with pytest.raises(ValueError, match=r"\[BatchNorm2d\] .* 4 axes. Got shape \(2, 4, 5\)"):
        nn.BatchNorm2d(4)(x)
    with pytest.raises(ValueError, match="must divide|divide num_channels. Got 3 and 4"):
        nn.GroupNorm(3, 4)
    with pytest.raises(ValueError, match="'mean', 'sum' or 'none'. Got 'average'"):
        nn.MSELoss(reduction="average")
    with pytest.raises(ValueError, match="dim must be given"):
        nn.Softmax()
    with pytest.raises(ValueError, match="min_val must be below max_val. Got 1 and 1"):
        nn.Hardtanh(1, 1)
    with pytest.raises(ValueError, match=r"multiply to axis 1, 4. Got \(3, -1\)"):
        nn.Unflatten(1, (3, -1))(x)
