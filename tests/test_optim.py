"""Optimizers and schedules against the papers in float64 and against PyTorch."""

from __future__ import annotations

import math

import numpy as np
import pytest

import convgrad as cg
from convgrad import optim
from convgrad.nn import utils
from tests.device import lib, tensor_on, values
from tests.helpers import assert_same_bits_for_any_threads, misplaced
from tests.reference import optim as reference

pytestmark = pytest.mark.kernel

RNG = np.random.default_rng
# Sizes around a vector, a conv weight, an empty one, and one of several work items.
SHAPES = [(1,), (7,), (16, 3), (6, 1, 5, 5), (0,), (4, 3, 2, 3, 2), (20_000,)]


def parameters(rng, shapes=SHAPES, dtype=np.float32):
    return [cg.tensor(rng.standard_normal(s).astype(dtype), requires_grad=True) for s in shapes]


def set_gradients(params, rng, skip=()):
    """New random gradients, channels-last, None for the indices in `skip`."""
    for i, p in enumerate(params):
        g = rng.standard_normal(p.shape).astype(p.array.dtype)
        p.grad = None if i in skip else tensor_on(lib.channels_last(g))


SGD_OPTIONS = [
    {"lr": 0.1},
    {"lr": 0.1, "weight_decay": 0.05},
    {"lr": 0.1, "momentum": 0.9},
    {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.05},
    {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.05},
]
ADAM_OPTIONS = [
    {"lr": 0.01},
    {"lr": 0.01, "weight_decay": 0.05},
    {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-4, "amsgrad": True},
]
RULES = (
    [("SGD", o) for o in SGD_OPTIONS]
    + [("Adam", o) for o in ADAM_OPTIONS]
    + [("AdamW", o) for o in ADAM_OPTIONS]
)


@pytest.mark.quick
@pytest.mark.parametrize(("name", "options"), RULES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_against_the_papers(name, options, dtype):
    rng = RNG(0)
    params = parameters(rng, dtype=dtype)
    start = [values(p).copy() for p in params]
    rule = getattr(optim, name)(params, **options)
    grads = [[] for _ in params]
    for _ in range(10):
        set_gradients(params, rng)
        for kept, p in zip(grads, params):
            kept.append(values(p.grad))
        rule.step()
    extra = {"weight_decay": 1e-2, **options} if name == "AdamW" else options
    for p, before, kept in zip(params, start, grads):
        if name == "SGD":
            exact = reference.sgd(before, kept, **extra)
        else:
            exact = reference.adam(before, kept, decoupled=name == "AdamW", **extra)
        tolerance = 2e-6 if dtype == np.float32 else 1e-14
        np.testing.assert_allclose(values(p), exact, rtol=tolerance, atol=tolerance)


def test_whole_numbers_are_exact():
    """lr and momentum powers of two: every step is exact."""
    p = cg.tensor(np.arange(-40, 41, dtype=np.float32), requires_grad=True)
    rule = optim.SGD([p], lr=0.5, momentum=0.5, weight_decay=2.0)
    exact, v = values(p).astype(np.float64), None
    for k in range(3):
        g = np.arange(81, dtype=np.float32)[::-1] * (4 - k)
        p.grad = tensor_on(g)
        rule.step()
        d = g + 2.0 * exact
        v = d if v is None else 0.5 * v + d
        exact = exact - 0.5 * v
        np.testing.assert_array_equal(values(p), exact)


@pytest.mark.parametrize(("name", "options"), RULES)
def test_parity(torch, name, options):
    """Ten steps, two groups, gradients that are missing now and then."""
    rng = RNG(1)
    ours = parameters(rng)
    theirs = [torch.tensor(values(p), requires_grad=True) for p in ours]
    groups = [{"params": slice(0, 3)}, {"params": slice(3, None), "lr": 0.03, "weight_decay": 0.2}]
    rule = getattr(optim, name)([{**g, "params": ours[g["params"]]} for g in groups], **options)
    other = getattr(torch.optim, name)(
        [{**g, "params": theirs[g["params"]]} for g in groups], **options
    )
    for k in range(10):
        skip = {0: (1, 3), 1: (3,), 5: (0, 2)}.get(k, ())
        set_gradients(ours, rng, skip)
        for p, q in zip(ours, theirs):
            q.grad = None if p.grad is None else torch.tensor(values(p.grad))
        if k == 7:
            rule.param_groups[1]["lr"] = other.param_groups[1]["lr"] = 0.005
        rule.step()
        other.step()
    for p, q in zip(ours, theirs):
        np.testing.assert_allclose(values(p), q.detach().numpy(), rtol=2e-5, atol=2e-6)
    for p, q in zip(ours, theirs):
        kept = {k: v.numpy() for k, v in other.state[q].items() if v is not None}
        assert set(rule.state[p]) == set(kept)
        for key, value in kept.items():
            np.testing.assert_allclose(values(rule.state[p][key]), value, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "options"), [RULES[4], RULES[7]])
def test_threads(name, options):
    def run():
        rng = RNG(2)
        params = parameters(rng, [(40_000,), (9, 9), (100_000,), (3,)])
        rule = getattr(optim, name)(params, **options)
        for _ in range(3):
            set_gradients(params, rng)
            rule.step()
        return [values(p) for p in params]

    assert_same_bits_for_any_threads(run)


@pytest.mark.parametrize(("name", "options"), [RULES[4], RULES[7], RULES[10]])
@pytest.mark.parametrize("count", [60, 1000])  # a launch on a GPU takes 48 or 470
def test_many_parameters_step_as_one(name, options, count):
    rng = RNG(17)
    whole = rng.standard_normal((4, 5 * count)).astype(np.float32)
    results = []
    for parts in (1, count):
        params = [
            cg.tensor(a, requires_grad=True)
            for part in np.split(whole[0], parts)
            for a in (part[:0], part)
        ]
        rule = getattr(optim, name)(params, **options)
        for step in whole[1:]:
            for p, g in zip(params[1::2], np.split(step, parts)):
                p.grad = cg.tensor(g)
            params[0].grad = cg.tensor(whole[0, :0])
            rule.step()
        norm = utils.clip_grad_norm_(params, 1e-3)
        results.append([np.concatenate([values(a) for a in (p, p.grad)]) for p in params[1::2]])
        assert values(norm) == pytest.approx(np.linalg.norm(whole[3].astype(np.float64)), rel=1e-6)
    whole, parts = results[0][0].reshape(2, -1), np.array(results[1])
    parts = parts.reshape(count, 2, -1).transpose(1, 0, 2).reshape(2, -1)
    np.testing.assert_allclose(parts, whole, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("name", "options"), [RULES[4], RULES[7], RULES[10]])
def test_any_place_in_memory(name, options):
    rng = RNG(18)
    w, *grads = rng.standard_normal((3, 67)).astype(np.float32)
    results = []
    for make in (tensor_on, misplaced):
        p = make(w.copy(), requires_grad=True)
        rule = getattr(optim, name)([p], **options)
        for g in grads:
            p.grad = make(g)
            rule.step()
        results.append(values(p))
    np.testing.assert_array_equal(*results)


def test_layouts_do_not_matter():
    """Strided, reversed and C-ordered parameters and gradients step like dense ones."""
    rng = RNG(3)
    w, g = rng.standard_normal((2, 4, 3, 5, 6)).astype(np.float32)
    results = []
    for view in (
        lambda a: lib.channels_last(a),
        lambda a: a.copy(),
        lambda a: np.repeat(a, 2, 0)[::2],
        lambda a: np.ascontiguousarray(a[::-1])[::-1],
        lambda a: np.asfortranarray(a),
    ):
        for grad_view in (lambda a: lib.channels_last(a), lambda a: a[::1]):
            p = tensor_on(view(w), requires_grad=True)
            array = p.array
            rule = optim.SGD([p], lr=0.1, momentum=0.9, nesterov=True)
            for _ in range(2):
                p.grad = tensor_on(grad_view(g))
                rule.step()
            assert p.array is array
            results.append(np.ascontiguousarray(values(p)))
    for r in results[1:]:
        np.testing.assert_array_equal(r, results[0])


@pytest.mark.quick
def test_state_dict_resumes_with_the_same_bits():
    for name, options in RULES:
        rng = RNG(4)
        params = parameters(rng, [(3, 2, 3, 3), (5,)])
        rule = getattr(optim, name)(params, **options)
        for _ in range(3):
            set_gradients(params, rng)
            rule.step()
        saved = rule.state_dict()
        copies = [cg.tensor(values(p), requires_grad=True) for p in params]
        resumed = getattr(optim, name)(copies, lr=123.0)
        resumed.load_state_dict(saved)
        for _ in range(2):
            set_gradients(params, rng)
            for p, q in zip(params, copies):
                q.grad = p.grad.detach()
            rule.step()
            resumed.step()
        for p, q in zip(params, copies):
            np.testing.assert_array_equal(values(p), values(q))
        assert resumed.param_groups[0]["lr"] == options["lr"]


def test_state_dict_is_plain(torch):
    """Keys as PyTorch's, values arrays and numbers; a copy, not a view."""
    params = parameters(RNG(5), [(3, 2), (4,)])
    rule = optim.Adam([{"params": params[:1]}, {"params": params[1:], "lr": 0.1}])
    set_gradients(params, RNG(6))
    rule.step()
    saved = rule.state_dict()
    assert set(saved) == {"state", "param_groups"}
    assert [g["params"] for g in saved["param_groups"]] == [[0], [1]]
    assert saved["state"][1]["step"] == 1.0 and isinstance(saved["state"][1]["step"], float)
    assert isinstance(saved["state"][0]["exp_avg"], np.ndarray)
    before = saved["state"][0]["exp_avg"].copy()
    rule.step()
    np.testing.assert_array_equal(saved["state"][0]["exp_avg"], before)
    theirs = torch.optim.Adam([torch.zeros(1)]).state_dict()
    assert set(saved["param_groups"][0]) <= set(theirs["param_groups"][0]) | {"params"}


@pytest.mark.quick
def test_errors():
    p, q = parameters(RNG(7), [(2,), (3,)])
    with pytest.raises(ValueError, match=r"\[SGD\].*once. Got one of shape \(2,\) twice"):
        optim.SGD([p, p])
    with pytest.raises(ValueError, match=r"\[Adam\].*once"):
        optim.Adam([{"params": [p]}, {"params": [q, p]}])
    with pytest.raises(ValueError, match=r"\[SGD\].*leaf.*shape \(\)"):
        optim.SGD([cg.functional.mse_loss(p, p)])
    with pytest.raises(ValueError, match=r"at least one tensor"):
        optim.SGD([])
    with pytest.raises(TypeError, match=r"Got one tensor"):
        optim.SGD(p)
    with pytest.raises(TypeError, match=r"Got ndarray"):
        optim.SGD([values(p)])
    with pytest.raises(ValueError, match=r"lr must be >= 0. Got -1"):
        optim.SGD([p], lr=-1)
    with pytest.raises(ValueError, match=r"momentum > 0 and no dampening. Got momentum 0 "):
        optim.SGD([p], nesterov=True)
    with pytest.raises(ValueError, match=r"betas must be in \[0, 1\). Got \(0.9, 1.0\)"):
        optim.AdamW([p], betas=(0.9, 1.0))
    p.grad = cg.tensor(np.zeros(3, np.float32))
    with pytest.raises(ValueError, match=r"\[sgd\] gradient .* \(2,\) float32. Got \(3,\) float32"):
        optim.SGD([p]).step()
    p.grad = cg.tensor(np.zeros(2))
    with pytest.raises(ValueError, match=r"\(2,\) float32. Got \(2,\) float64"):
        optim.SGD([p]).step()
    with pytest.raises(ValueError, match=r"groups of \[1\] parameters. Got \[2\]"):
        optim.SGD([p]).load_state_dict(optim.SGD([p, q]).state_dict())


def test_zero_grad_and_versions():
    (p,) = parameters(RNG(8), [(2,)])
    rule = optim.SGD([p])
    set_gradients([p], RNG(9))
    before = p.version[0]
    rule.step()
    assert p.version[0] == before + 1
    rule.zero_grad(set_to_none=False)
    assert not values(p.grad).any()
    rule.zero_grad()
    assert p.grad is None
    rule.step()
    assert p.version[0] == before + 1


def test_nan_gradients_show():
    for name, options in RULES:
        (p,) = parameters(RNG(10), [(20,)])
        rule = getattr(optim, name)([p], **options)
        g = np.ones(20, np.float32)
        g[3] = np.nan
        p.grad = tensor_on(g)
        rule.step()
        assert np.isnan(values(p)[3]) and np.isfinite(np.delete(values(p), 3)).all()


# ---- schedules ----

SCHEDULES = {
    "StepLR": {"step_size": 3, "gamma": 0.5},
    "MultiStepLR": {"milestones": [2, 5, 5], "gamma": 0.3},
    "ExponentialLR": {"gamma": 0.8},
    "ConstantLR": {"factor": 0.2, "total_iters": 4},
    "LinearLR": {"start_factor": 0.1, "total_iters": 6},
    "PolynomialLR": {"total_iters": 7, "power": 0.9},
    "CosineAnnealingLR": {"T_max": 5, "eta_min": 0.01},
    "LambdaLR": {"lr_lambda": [lambda e: 1 / (1 + e), lambda e: 0.9**e]},
}


def two_groups(module, tensor):
    a, b = tensor([1.0]), tensor([2.0])
    return module.SGD([{"params": [a]}, {"params": [b], "lr": 0.7}], lr=0.3)


@pytest.mark.filterwarnings("ignore:Detected call of")
@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule_parity(torch, name):
    ours, theirs = two_groups(optim, cg.tensor), two_groups(torch.optim, torch.tensor)
    a = getattr(optim.lr_scheduler, name)(ours, **SCHEDULES[name])
    b = getattr(torch.optim.lr_scheduler, name)(theirs, **SCHEDULES[name])
    for epoch in range(14):
        assert a.get_last_lr() == pytest.approx(b.get_last_lr(), rel=1e-6, abs=1e-9), epoch
        assert [g["lr"] for g in ours.param_groups] == a.get_last_lr()
        a.step()
        b.step()


@pytest.mark.filterwarnings("ignore")
def test_sequential_parity(torch):
    def build(module, tensor):
        rule = two_groups(module, tensor)
        s = module.lr_scheduler
        parts = [s.LinearLR(rule, 0.1, total_iters=4), s.CosineAnnealingLR(rule, 6)]
        return s.SequentialLR(rule, parts, [4])

    a, b = build(optim, cg.tensor), build(torch.optim, torch.tensor)
    for _ in range(11):
        assert a.get_last_lr() == pytest.approx(b.get_last_lr(), rel=1e-6, abs=1e-9)
        a.step()
        b.step()


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("threshold_mode", ["rel", "abs"])
def test_plateau_parity(torch, mode, threshold_mode):
    options = {
        "mode": mode,
        "factor": 0.5,
        "patience": 1,
        "threshold": 0.05,
        "cooldown": 1,
        "threshold_mode": threshold_mode,
        "min_lr": [0.1, 0.02],
    }
    ours, theirs = two_groups(optim, cg.tensor), two_groups(torch.optim, torch.tensor)
    a = optim.lr_scheduler.ReduceLROnPlateau(ours, **options)
    b = torch.optim.lr_scheduler.ReduceLROnPlateau(theirs, **options)
    for metric in [
        1.0,
        0.9,
        0.88,
        0.87,
        0.86,
        1.0,
        1.0,
        1.2,
        1.21,
        1.0,
        1.0,
        1.0,
        math.nan,
        2.0,
        2.0,
    ]:
        a.step(metric)
        b.step(metric)
        assert a.get_last_lr() == pytest.approx([g["lr"] for g in theirs.param_groups])


PAIRS = {
    "warm-up and decay": lambda m, o: (m.LinearLR(o, 0.1, total_iters=4), m.ExponentialLR(o, 0.9)),
    "two steps": lambda m, o: (m.StepLR(o, 1, 0.9), m.StepLR(o, 3, 0.1)),
    "cosine and milestones": lambda m, o: (
        m.CosineAnnealingLR(o, 12, eta_min=0.01),
        m.MultiStepLR(o, [3, 5], 0.5),
    ),
    "polynomial and constant": lambda m, o: (m.PolynomialLR(o, 20, 2.0), m.ConstantLR(o, 0.5, 3)),
    "exponential alone": lambda m, o: (m.ExponentialLR(o, 0.9),),
    "lambda sets its own": lambda m, o: (m.LambdaLR(o, lambda e: 0.8**e), m.StepLR(o, 2, 0.5)),
}


@pytest.mark.parametrize("changed_at", [None, 4])
@pytest.mark.parametrize("name", PAIRS)
def test_schedules_compound_and_respect_a_change_as_pytorch(torch, name, changed_at):
    def rates(make, library, tensor):
        optimizer = library.SGD([{"params": [tensor]}], lr=0.5)
        schedules = make(library.lr_scheduler, optimizer)
        found = []
        for epoch in range(8):
            found.append(optimizer.param_groups[0]["lr"])
            if epoch == changed_at:
                optimizer.param_groups[0]["lr"] = 0.3
            tensor.sum().backward()
            optimizer.step()
            for schedule in schedules:
                schedule.step()
        return found

    ours = rates(PAIRS[name], optim, cg.ones(1, requires_grad=True))
    theirs = rates(PAIRS[name], torch.optim, torch.ones(1, requires_grad=True))
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def test_schedules_resume():
    for name, options in SCHEDULES.items():
        rule = two_groups(optim, cg.tensor)
        schedule = getattr(optim.lr_scheduler, name)(rule, **options)
        for _ in range(3):
            schedule.step()
        again = two_groups(optim, cg.tensor)
        resumed = getattr(optim.lr_scheduler, name)(again, **options)
        again.load_state_dict(rule.state_dict())
        resumed.load_state_dict(schedule.state_dict())
        for _ in range(4):
            schedule.step()
            resumed.step()
            assert [g["lr"] for g in again.param_groups] == schedule.get_last_lr()


def test_schedule_errors():
    rule = two_groups(optim, cg.tensor)
    schedules = optim.lr_scheduler
    with pytest.raises(ValueError, match=r"one per group, 2. Got 3"):
        schedules.LambdaLR(rule, [abs, abs, abs])
    with pytest.raises(ValueError, match=r"factor must be in \[0, 1\). Got 1.5"):
        schedules.ReduceLROnPlateau(rule, factor=1.5)
    with pytest.raises(ValueError, match=r"mode must be 'min' or 'max'. Got 'low'"):
        schedules.ReduceLROnPlateau(rule, mode="low")
    with pytest.raises(KeyError, match=r"no 'initial_lr' to resume from at last_epoch 3"):
        schedules.StepLR(rule, 2, last_epoch=3)
    with pytest.raises(ValueError, match=r"1 schedulers need 0 milestones. Got 1"):
        schedules.SequentialLR(rule, [schedules.StepLR(rule, 2)], [3])


# ---- nn.utils ----


@pytest.mark.parametrize("norm_type", [2.0, 1.0, 3.0, math.inf])
@pytest.mark.parametrize("max_norm", [0.5, 1e6])
def test_clip_grad_norm_parity(torch, norm_type, max_norm):
    rng = RNG(11)
    # PyTorch has no largest element of nothing; for us it is 0.
    ours = parameters(rng, [s for s in SHAPES if norm_type != math.inf or 0 not in s])
    theirs = [torch.tensor(values(p), requires_grad=True) for p in ours]
    set_gradients(ours, rng, skip=(1,))
    for p, q in zip(ours, theirs):
        q.grad = None if p.grad is None else torch.tensor(values(p.grad))
    a = utils.clip_grad_norm_(ours, max_norm, norm_type)
    b = torch.nn.utils.clip_grad_norm_(theirs, max_norm, norm_type)
    assert values(a) == pytest.approx(b.numpy(), rel=1e-5)
    for p, q in zip(ours, theirs):
        if p.grad is not None:
            np.testing.assert_allclose(values(p.grad), q.grad.numpy(), rtol=1e-5)


def test_clip_grad_norm_threads_and_edges():
    def run():
        params = parameters(RNG(12), [(40_000,), (5,), (90_000,)])
        set_gradients(params, RNG(13))
        return [values(utils.clip_grad_norm_(params, 1.0)), *[values(p.grad) for p in params]]

    assert_same_bits_for_any_threads(run)
    (p,) = parameters(RNG(14), [(3,)])
    assert values(utils.clip_grad_norm_([p], 1.0)) == 0
    p.grad = cg.tensor([1.0, np.nan, 2.0])
    with pytest.raises(RuntimeError, match=r"norm of the gradients is nan"):
        utils.clip_grad_norm_(p, 1.0, error_if_nonfinite=True)
    assert np.isnan(values(utils.clip_grad_norm_(p, 1.0)))
    assert np.isnan(values(p.grad)).all()
    for kind in (1.0, 2.0, 3.0, math.inf):
        p.grad = cg.tensor([1.0, np.nan, 2.0])
        assert np.isnan(values(utils.clip_grad_norm_(p, 1.0, kind)))
    with pytest.raises(ValueError, match=r"norm_type must be > 0. Got 0"):
        utils.clip_grad_norm_(p, 1.0, 0)


def test_clip_grad_value_and_vectors():
    params = parameters(RNG(15), [(3, 2), (4,)])
    set_gradients(params, RNG(16))
    before = [values(p.grad).copy() for p in params]
    utils.clip_grad_value_(params, 0.5)
    for p, g in zip(params, before):
        np.testing.assert_array_equal(values(p.grad), np.clip(g, -0.5, 0.5))
    vector = utils.parameters_to_vector(params)
    assert vector.shape == (10,)
    doubled = cg.tensor(2 * values(vector))
    expected = [2 * values(p) for p in params]
    utils.vector_to_parameters(doubled, params)
    for p, e in zip(params, expected):
        np.testing.assert_array_equal(values(p), e)
    with pytest.raises(ValueError, match=r"shape \(10,\). Got \(3,\)"):
        utils.vector_to_parameters(cg.tensor([1.0, 2.0, 3.0]), params)
