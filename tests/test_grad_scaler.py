"""The loss scale: against PyTorch's GradScaler, and that a step that finds an infinity changes
nothing without asking the host."""

import numpy as np
import pytest

import convgrad as cg
from convgrad import optim
from tests.device import values

RULES = {
    "sgd": lambda params: optim.SGD(params, lr=0.1),
    "momentum": lambda params: optim.SGD(params, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda params: optim.Adam(params, lr=0.1, amsgrad=True),
    "adamw": lambda params: optim.AdamW(params, lr=0.1),
}
# What a gradient's first element becomes, step by step.
STEPS = (None, np.inf, None, None, np.nan, -np.inf, None, None, None)


def parameters(seed=0):
    rng = np.random.default_rng(seed)
    shapes = ((4, 3, 2, 2), (5,), ())
    return [
        cg.tensor(rng.standard_normal(s).astype(np.float32), requires_grad=True) for s in shapes
    ]


def backward(scaler, params, spoil=None):
    loss = sum((p * p).sum() for p in params)
    scaler.scale(loss).backward()
    if spoil is not None:
        with cg.no_grad():
            params[0].grad[0, 0, 0, 0] = spoil


def run(scaler, rule, steps):
    """Parameters after each step."""
    params = parameters()
    optimizer = RULES[rule](params)
    seen = []
    for spoil in steps:
        optimizer.zero_grad()
        backward(scaler, params, spoil)
        scaler.step(optimizer)
        scaler.update()
        seen.append([values(p).copy() for p in params])
    return seen


@pytest.mark.parametrize("rule", RULES)
def test_a_step_that_finds_an_infinity_is_as_if_it_had_not_been(rule):
    scaler = cg.GradScaler(growth_interval=3)
    seen = run(scaler, rule, STEPS)
    good = [i for i, spoil in enumerate(STEPS) if spoil is None]
    plain = run(cg.GradScaler(enabled=False), rule, [None] * len(good))
    for i, expected in zip(good, plain):
        for ours, theirs in zip(seen[i], expected):
            np.testing.assert_array_equal(ours, theirs)  # the scale is a power of two
    for i in set(range(len(STEPS))) - set(good):
        for ours, before in zip(seen[i], seen[i - 1]):
            np.testing.assert_array_equal(ours, before)


def test_a_skipped_first_step_leaves_momentum_empty():
    first_skipped = run(cg.GradScaler(), "momentum", (np.inf, None, None))[1:]
    plain = run(cg.GradScaler(), "momentum", (None, None))
    for ours, theirs in zip(first_skipped, plain):
        for a, b in zip(ours, theirs):
            np.testing.assert_array_equal(a, b)


def test_nothing_waits_for_the_device(monkeypatch):
    """Neither scaling nor the step asks for a value."""
    scaler, params = cg.GradScaler(), parameters()
    optimizer = RULES["adam"](params)
    backward(scaler, params)
    scaler.step(optimizer)
    scaler.update()

    def refuse(array):
        raise AssertionError("a value was asked for")

    monkeypatch.setattr("convgrad.backend.host", refuse)
    monkeypatch.setattr("convgrad.optim.grad_scaler.host", refuse)
    monkeypatch.setattr(cg.Tensor, "item", refuse)
    for spoil in (None, np.inf):
        backward(scaler, params, spoil)
        scaler.step(optimizer)
        scaler.update()


@pytest.mark.parametrize("interval", [1, 3])
def test_the_scale_goes_as_pytorchs(torch, interval):
    arguments = {"init_scale": 64.0, "growth_factor": 3.0, "backoff_factor": 0.25}
    ours = cg.GradScaler(**arguments, growth_interval=interval)
    theirs = torch.amp.GradScaler("cpu", **arguments, growth_interval=interval)
    params = parameters()
    twin = [torch.tensor(values(p), requires_grad=True) for p in params]
    optimizer, other = RULES["sgd"](params), torch.optim.SGD(twin, lr=0.1)
    for spoil in STEPS:
        optimizer.zero_grad()
        other.zero_grad()
        backward(ours, params, spoil)
        theirs.scale(sum((p * p).sum() for p in twin)).backward()
        if spoil is not None:
            twin[0].grad[0, 0, 0, 0] = float(spoil)
        ours.step(optimizer)
        theirs.step(other)
        ours.update()
        theirs.update()
        assert ours.get_scale() == theirs.get_scale()
        assert ours.state_dict() == theirs.state_dict()
        for p, q in zip(params, twin):
            np.testing.assert_allclose(values(p), q.detach().numpy(), rtol=2e-6)


def test_the_largest_scale_stays_finite():
    scaler, params = cg.GradScaler(2.0**127, growth_interval=1), parameters()
    optimizer = RULES["sgd"](params)
    for p in params:
        p.grad = cg.zeros(p.shape)
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**127


def test_gradients_can_be_clipped_between():
    scaler, params = cg.GradScaler(8.0), parameters()
    optimizer = RULES["sgd"](params)
    backward(scaler, params)
    scaled = [values(p.grad).copy() for p in params]
    scaler.unscale_(optimizer)
    for p, before in zip(params, scaled):
        np.testing.assert_array_equal(values(p.grad), before / 8)
    cg.nn.utils.clip_grad_norm_(params, 0.5)
    clipped, before = [values(p.grad).copy() for p in params], [values(p).copy() for p in params]
    scaler.step(optimizer)
    for p, old, g in zip(params, before, clipped):
        np.testing.assert_allclose(values(p), old - np.float32(0.1) * g, rtol=1e-6, atol=1e-7)


def test_one_scaler_serves_two_optimizers():
    """The finding of one does not skip the other's step, and either makes the scale smaller."""
    scaler, first, second = cg.GradScaler(8.0), parameters(), parameters(1)
    optimizers = RULES["sgd"](first), RULES["adam"](second)
    backward(scaler, first, np.nan)
    backward(scaler, second)
    before = [[values(p).copy() for p in params] for params in (first, second)]
    for optimizer in optimizers:
        scaler.step(optimizer)
    scaler.update()
    assert all(np.array_equal(values(p), b) for p, b in zip(first, before[0]))
    assert not any(np.array_equal(values(p), b) for p, b in zip(second, before[1]))
    assert scaler.get_scale() == 4.0


def test_other_optimizers_are_called_or_not():
    class Counting(optim.Optimizer):
        steps = 0

        def step(self):
            self.steps += 1

    scaler, params = cg.GradScaler(), parameters()
    optimizer = Counting(params, {})
    for spoil, steps in ((None, 1), (np.inf, 1), (None, 2)):
        optimizer.zero_grad()
        backward(scaler, params, spoil)
        scaler.step(optimizer)
        scaler.update()
        assert optimizer.steps == steps


def test_state_is_taken_over():
    scaler = cg.GradScaler(32.0, growth_interval=5)
    run(scaler, "sgd", (None, None))
    state = scaler.state_dict()
    assert state == {
        "scale": 32.0, "growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 5,
        "_growth_tracker": 2,
    }  # fmt: skip
    for other in (cg.GradScaler(), cg.GradScaler()):
        other.load_state_dict(state)
        assert other.state_dict() == state
        run(other, "sgd", (None, None, None))
        assert (other.get_scale(), other.state_dict()["_growth_tracker"]) == (64.0, 0)
        other.load_state_dict(state)  # the arrays on the device take it over too
        assert other.state_dict() == state
    assert cg.GradScaler(enabled=False).state_dict() == {}
    with pytest.raises(RuntimeError, match="must be that of an enabled scaler"):
        other.load_state_dict({})


def test_scale_takes_what_pytorchs_takes():
    scaler = cg.GradScaler(4.0)
    x = cg.tensor([1.0, 2.0])
    np.testing.assert_array_equal(values(scaler.scale(x)), [4, 8])
    a, (b, c) = scaler.scale((x, [x, x]))
    assert all(np.array_equal(values(t), [4, 8]) for t in (a, b, c))
    with pytest.raises(TypeError, match=r"\[GradScaler.scale\] .* Got 3"):
        scaler.scale(3)
    scaler.update(new_scale=2.0)
    assert scaler.get_scale() == 2.0


def test_calls_out_of_order_are_errors():
    scaler, params = cg.GradScaler(), parameters()
    optimizer = RULES["sgd"](params)
    with pytest.raises(RuntimeError, match=r"\[GradScaler.update\] .* Got none"):
        scaler.update()
    with pytest.raises(RuntimeError, match=r"\[GradScaler.step\] No parameter"):
        scaler.step(optimizer)
    scaler = cg.GradScaler()
    backward(scaler, params)
    scaler.unscale_(optimizer)
    with pytest.raises(RuntimeError, match=r"once between updates. Got a call after unscale_\(\)"):
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    with pytest.raises(RuntimeError, match="Got a second call"):
        scaler.step(optimizer)
    with pytest.raises(RuntimeError, match=r"Got a call after step\(\)"):
        scaler.unscale_(optimizer)
    scaler.update()


@pytest.mark.parametrize("arguments, message", [
    ({"growth_factor": 1.0}, "growth_factor must be > 1. Got 1.0"),
    ({"backoff_factor": 1.0}, r"backoff_factor must be in \(0, 1\). Got 1.0"),
    ({"init_scale": 0.0}, "init_scale must be > 0. Got 0.0"),
])  # fmt: skip
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        cg.GradScaler(**arguments)
