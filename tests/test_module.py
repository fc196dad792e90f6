"""Module, Parameter and the containers: PyTorch's behaviour, without any op but conv and linear."""

import copy
import pickle
from collections import OrderedDict

import numpy as np
import pytest

import convgrad as cg
from convgrad import nn
from tests.device import DEVICE, values


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.body = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Sequential(nn.Linear(2, 2, bias=False)))
        self.scale = nn.Parameter(np.ones(2, np.float32))
        self.register_buffer("count", cg.tensor(np.zeros(1, np.int64)))
        self.register_buffer("scratch", cg.tensor([1.0, 2.0]), persistent=False)
        self.register_parameter("nothing", None)

    def forward(self, x):
        return self.first(x)


KEYS = ["scale", "count", "first.weight", "first.bias", "body.0.weight", "body.0.bias",
        "body.1.0.weight"]  # fmt: skip


@pytest.mark.quick
def test_names_and_walking():
    net = Net()
    assert list(net.state_dict()) == KEYS
    assert [n for n, _ in net.named_parameters()] == [k for k in KEYS if k != "count"]
    assert [n for n, _ in net.named_buffers()] == ["count", "scratch"]
    assert [n for n, _ in net.named_modules()] == [
        "", "first", "body", "body.0", "body.1", "body.1.0",
    ]  # fmt: skip
    assert [n for n, _ in net.named_children()] == ["first", "body"]
    assert [n for n, _ in net.named_parameters(recurse=False)] == ["scale"]
    assert [n for n, _ in net.named_parameters(prefix="p", recurse=False)] == ["p.scale"]
    assert net.get_submodule("body.1.0") is net.body[1][0] and net.get_submodule("") is net
    assert net.get_parameter("first.bias") is net.first.bias
    with pytest.raises(AttributeError, match=r"no module 'none'.*'body\.none'"):
        net.get_submodule("body.none")
    assert list(net._modules) == ["first", "body"] and list(net._parameters) == ["scale"]


def test_same_names_as_pytorch(torch):
    class Theirs(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first = torch.nn.Linear(3, 4)
            self.body = torch.nn.Sequential(
                torch.nn.Conv2d(2, 3, 3), torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False))
            )
            self.scale = torch.nn.Parameter(torch.ones(2))
            self.register_buffer("count", torch.zeros(1, dtype=torch.int64))
            self.register_buffer("scratch", torch.ones(2), persistent=False)
            self.register_parameter("nothing", None)

    theirs, ours = Theirs(), Net()
    assert list(theirs.state_dict()) == list(ours.state_dict())
    assert repr(theirs).replace("Theirs", "Net") == repr(ours)
    for walk in ("named_parameters", "named_buffers", "named_modules", "named_children"):
        assert [n for n, _ in getattr(theirs, walk)()] == [n for n, _ in getattr(ours, walk)()]


def test_shared_parameters_count_once():
    a = nn.Linear(2, 2)
    b = nn.Linear(2, 2)
    b.weight = a.weight
    net = nn.Sequential(a, b, a)
    assert [n for n, _ in net.named_parameters()] == ["0.weight", "0.bias", "1.bias"]
    assert len(list(net.modules())) == 3 and len(list(net.children())) == 2
    assert list(net.state_dict()) == [f"{i}.{n}" for i in range(3) for n in ("weight", "bias")]
    assert len(list(net.named_parameters(remove_duplicate=False))) == 6


@pytest.mark.quick
def test_assignment():
    net = Net()
    with pytest.raises(TypeError, match=r"'scale' is a parameter.*Parameter or None.*Got Tensor"):
        net.scale = cg.tensor([1.0, 2.0])
    with pytest.raises(TypeError, match="'first' is a module: .*Got int"):
        net.first = 3
    with pytest.raises(TypeError, match="'count' is a buffer: .*Got list"):
        net.count = [0]
    net.nothing = nn.Parameter(np.zeros(1, np.float32))
    assert "nothing" in net.state_dict()
    net.scale = None
    assert "scale" not in net.state_dict()
    del net.first
    assert not hasattr(net, "first") and "first.weight" not in net.state_dict()
    net.first = "free again"
    object.__setattr__(net, "teacher", nn.Linear(1, 1))  # deliberately not registered
    assert "teacher.weight" not in net.state_dict()
    with pytest.raises(KeyError, match=r"without '\.'. Got 'a\.b'"):
        net.register_buffer("a.b", None)
    with pytest.raises(KeyError, match="'forward' exists already"):
        net.add_module("forward", nn.Linear(1, 1))
    with pytest.raises(TypeError, match="must be a Parameter or None. Got Tensor"):
        net.register_parameter("p", cg.tensor([1.0]))


def test_parameter():
    p = nn.Parameter(cg.tensor([1.0, 2.0]))
    assert p.requires_grad and p.is_leaf and isinstance(p, cg.Tensor)
    assert repr(p).startswith("Parameter containing:\n")
    source = cg.tensor([1.0])
    shared = nn.Parameter(source)
    assert shared.array is source.array and shared.version is source.version
    image = nn.Parameter(np.ones((2, 3, 4, 5), np.float32))
    assert image.array.strides[1] == 4, "physically channels-last"
    with pytest.raises(TypeError, match="can require gradients. Got int64"):
        nn.Parameter(np.zeros(2, np.int64))
    assert nn.Parameter(np.zeros(2, np.int64), requires_grad=False).array.dtype == np.int64


@pytest.mark.quick
def test_load_state_dict_copies_arrays_and_tensors():
    source, net = Net(), Net()
    arrays = {k: np.ascontiguousarray(values(t)).astype(np.float64)
              for k, t in source.state_dict().items()}  # fmt: skip
    arrays["count"] = np.array([7])
    weight = net.body[0].weight
    array, version = weight.array, weight.version[0]
    assert repr(net.load_state_dict(arrays)) == "<All keys matched successfully>"
    assert weight.array is array and weight.array.dtype == np.float32
    assert weight.array.strides[1] == 4 and weight.version[0] == version + 1
    for key, t in net.state_dict().items():
        np.testing.assert_array_equal(values(t), arrays[key])
    net.load_state_dict(source.state_dict())
    assert values(net.count)[0] == 0
    state = net.state_dict()
    state["scale"].array[...] = 5
    assert values(net.scale)[0] == 5, "a state shares memory"


def test_load_state_dict_names_every_problem():
    net = Net()
    before = {k: values(t).copy() for k, t in net.state_dict().items()}
    state = dict(before)
    del state["first.weight"], state["count"]
    state["extra"] = state["more.extra"] = np.zeros(2)
    state["scale"] = np.zeros(3)
    state["body.0.weight"] = np.zeros((2, 3, 3))
    state["first.bias"] = before["first.bias"] + 1
    with pytest.raises(RuntimeError, match=r"does not fit Net") as error:
        net.load_state_dict(state)
    assert isinstance(error.value, ValueError)
    for part in (
        "Missing: 'count', 'first.weight'.",
        "Unexpected: 'extra', 'more.extra'.",
        "'scale' is (3,), here (2,)",
        "'body.0.weight' is (2, 3, 3), here (3, 2, 3, 3)",
    ):
        assert part in str(error.value)
    for key, t in net.state_dict().items():
        np.testing.assert_array_equal(values(t), before[key], err_msg="nothing may have changed")
    with pytest.raises(nn.StateDictError, match="Wrong shape") as error:
        net.load_state_dict(state, strict=False)
    assert "Missing" not in str(error.value)
    del state["scale"], state["body.0.weight"]
    keys = net.load_state_dict(state, strict=False)
    assert keys.missing_keys == ["scale", "count", "first.weight", "body.0.weight"]
    assert keys.unexpected_keys == ["extra", "more.extra"] and "extra" in repr(keys)
    assert values(net.first.bias)[0] == before["first.bias"][0] + 1
    with pytest.raises(TypeError, match="'scale' must be numbers. Got dtype <U1"):
        net.load_state_dict({"scale": np.array(["a", "b"])})


def test_hooks():
    net = nn.Linear(2, 2)
    calls = []
    x = cg.tensor(np.ones((1, 2), np.float32))
    plain = values(net(x))
    first = net.register_forward_hook(lambda m, args, y: calls.append(("post", m is net, y.shape)))
    pre = net.register_forward_pre_hook(lambda m, args: calls.append(("pre", len(args))))
    net(x)
    assert calls == [("pre", 1), ("post", True, (1, 2))]
    pre.remove()
    pre.remove()
    first.remove()
    net(x)
    assert len(calls) == 2
    twice = cg.tensor(2 * values(x))
    with net.register_forward_pre_hook(lambda m, args: twice):
        np.testing.assert_allclose(values(net(x)), plain * 2 - values(net.bias), rtol=1e-5)
    with net.register_forward_hook(lambda m, args, y: "replaced"):
        assert net(x) == "replaced"
    order = []
    handles = [
        net.register_forward_hook(lambda *_: order.append("b")),
        net.register_forward_hook(lambda *_: order.append("a"), prepend=True),
        net.register_forward_hook(
            lambda m, args, kwargs, y: order.append(list(kwargs)), with_kwargs=True
        ),
        net.register_forward_pre_hook(lambda m, args, kwargs: ((), {"input": x}), with_kwargs=True),
    ]
    net(None)
    assert order == ["a", "b", ["input"]]
    for handle in handles:
        handle.remove()
    np.testing.assert_array_equal(values(net(x)), plain)


def test_modes_and_gradients():
    net = Net()
    assert net.training and net.eval() is net
    assert not any(m.training for m in net.modules())
    net.train()
    assert all(m.training for m in net.modules())
    with pytest.raises(ValueError, match="mode must be a bool. Got 'yes'"):
        net.train("yes")
    net.requires_grad_(False)
    assert not any(p.requires_grad for p in net.parameters())
    net.requires_grad_()
    net(cg.tensor(np.ones((1, 3), np.float32))).backward(cg.tensor(np.ones((1, 4), np.float32)))
    assert net.first.bias.grad is not None
    net.zero_grad(set_to_none=False)
    assert not values(net.first.bias.grad).any()
    net.zero_grad()
    assert net.first.bias.grad is None
    names = []
    assert net.apply(lambda m: names.append(type(m).__name__)) is net
    assert names == ["Linear", "Conv2d", "Linear", "Sequential", "Sequential", "Net"]


def test_dtypes():
    net = Net()
    weight = net.body[0].weight
    assert net.double() is net and net.body[0].weight is weight
    assert {t.array.dtype for t in net.parameters()} == {np.dtype(np.float64)}
    assert weight.array.strides[1] == 8
    assert net.count.array.dtype == np.int64 and net.scratch.array.dtype == np.float64
    assert net.float().to(DEVICE).to(dtype=np.float32).scale.array.dtype == np.float32
    assert net.to(cg.tensor([1.0])).to(DEVICE) is net
    with pytest.raises(TypeError, match="a floating type. Got int32"):
        net.to(np.int32)
    with pytest.raises(RuntimeError, match="not available"):
        net.cuda(99)
    assert nn.Linear(2, 3, dtype=np.float64).weight.array.dtype == np.float64


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies(clone):
    net = Net()
    net.first.register_forward_hook(_hook)
    net.scale.requires_grad = False
    other = clone(net.eval())
    assert repr(other) == repr(net) and not other.training and not other.scale.requires_grad
    assert list(other.state_dict()) == KEYS
    for a, b in zip(net.parameters(), other.parameters()):
        assert a is not b and isinstance(b, nn.Parameter) and a.requires_grad == b.requires_grad
        np.testing.assert_array_equal(values(a), values(b))
        assert a.array.strides == b.array.strides and not np.shares_memory(a.array, b.array)
    assert other.first(cg.tensor(np.ones((1, 3), np.float32))) == "hooked"
    tied = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    tied[1].weight = tied[0].weight
    tied = clone(tied)
    assert tied[1].weight is tied[0].weight


def _hook(module, args, output):
    return "hooked"


@pytest.mark.quick
def test_sequential():
    a, b, c = nn.Identity(), nn.Linear(2, 3), nn.Linear(3, 1)
    net = nn.Sequential(a, b, c)
    x = cg.tensor(np.ones((4, 2), np.float32))
    np.testing.assert_array_equal(values(net(x)), values(c(b(x))))
    assert len(net) == 3 and list(net) == [a, b, c] and net[-1] is c and b in net
    assert list(net[1:]) == [b, c] and isinstance(net[1:], nn.Sequential)
    assert next(iter(net[1:].state_dict())) == "1.weight", "slices keep names, as PyTorch's"
    with pytest.raises(IndexError, match="index 3 is out of 3"):
        net[3]
    net.append(a).insert(1, c).extend([b])
    assert list(net) == [a, c, b, c, a, b]
    del net[0]
    net[0] = b
    assert list(net) == [b, b, c, a, b] and [n for n, _ in net.named_children()] == ["0", "2", "3"]
    assert net.pop() is b and list(net + nn.Sequential(c)) == [b, b, c, a, c]
    named = nn.Sequential(OrderedDict(one=b, two=c))
    assert named.two is c and list(named.state_dict())[2] == "two.weight"
    del named[0]
    assert list(named.state_dict()) == ["two.weight", "two.bias"]


def test_lists_and_dictionaries():
    items = nn.ModuleList([nn.Linear(1, 1)])
    items += [nn.Linear(2, 2)]
    items.insert(0, nn.Identity())
    assert len(items) == 3 and [m for m in items][1].in_features == 1
    assert list(items.state_dict()) == ["1.weight", "1.bias", "2.weight", "2.bias"]
    assert isinstance(items[:2], nn.ModuleList) and len(items[:2]) == 2
    table = nn.ModuleDict({"a": nn.Linear(1, 1)})
    table["b"] = nn.Identity()
    assert list(table) == ["a", "b"] and "a" in table and len(table) == 2
    assert [k for k, _ in table.items()] == ["a", "b"] and table.values()[1] is table["b"]
    assert isinstance(table.pop("a"), nn.Linear) and list(table.state_dict()) == []
    with pytest.raises(KeyError, match="a"):
        table["a"]
    with pytest.raises(KeyError, match="'pop' exists already"):
        table["pop"] = nn.Identity()
    table.clear()
    assert len(table) == 0
    values = nn.ParameterList([np.ones(2, np.float32), nn.Parameter(np.ones(3, np.float32))])
    values.append(cg.tensor([1.0]))
    assert list(values.state_dict()) == ["0", "1", "2"] and values[1].shape == (3,)
    assert sum(p.array.size for p in values) == 6 and len(list(values.parameters())) == 3
    assert repr(values).split("\n")[1:3] == [
        "  (0): Parameter containing: [float32 of size 2]",
        "  (1): Parameter containing: [float32 of size 3]",
    ]
    named = nn.ParameterDict({"w": np.ones(2, np.float32)})
    assert isinstance(named["w"], nn.Parameter) and list(named.state_dict()) == ["w"]


def test_container_reprs_are_pytorchs(torch):
    def build(t):
        return [
            t.Sequential(t.Linear(1, 2), t.Sequential()),
            t.ModuleList([t.Linear(1, 1), t.Linear(1, 1), t.Sequential(t.Linear(1, 2))]),
            t.ModuleList(),
            t.ModuleDict({"a": t.Linear(1, 1), "b": t.Identity()}),
        ]

    assert list(map(repr, build(nn))) == list(map(repr, build(torch.nn)))


def test_errors_in_words():
    with pytest.raises(NotImplementedError, match=r"\[Module\] forward\(\) is not defined"):
        nn.Module()(1)
    with pytest.raises(ValueError, match=r"\[Conv2d\] groups must .*groups 2, in_channels 3"):
        nn.Conv2d(3, 4, 3, groups=2)
    with pytest.raises(ValueError, match="padding_mode must be one of .* Got 'same'"):
        nn.Conv1d(1, 1, 3, padding_mode="same")
    with pytest.raises(ValueError, match="padding='same' needs stride 1"):
        nn.Conv3d(1, 1, 3, stride=2, padding="same")
    with pytest.raises(ValueError, match=r"an int or 2 of them. Got \(3, 3, 3\)"):
        nn.Conv2d(1, 1, (3, 3, 3))
    with pytest.raises(TypeError, match="Only float arrays can require gradients. Got int64"):
        nn.Linear(1, 1, dtype=np.int64)
