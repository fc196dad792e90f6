"""Training steps captured into a CUDA graph: the same bits as without, and no way to get wrong
ones."""

import gc

import numpy as np
import pytest

import convgrad as cg
import convgrad.functional as F
from convgrad import nn, optim
from tests.device import BACKEND, ON_CPU, SIMULATED

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(ON_CPU, reason="needs CONVGRAD_TEST_DEVICE=cuda"),
]
simulated = pytest.mark.skipif(not SIMULATED, reason="looks into the simulator's memory")


def batches(count, n=4, seed=0):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        x = rng.standard_normal((n, 2, 6)).astype(np.float32)
        yield cg.tensor(x), cg.tensor(rng.integers(0, 3, n))


class Net(nn.Module):
    def __init__(self, p=0.3, momentum=0.1):
        super().__init__()
        self.conv = nn.Conv1d(2, 4, 3)
        self.norm = nn.BatchNorm1d(4, momentum=momentum)
        self.drop = nn.Dropout(p)
        self.out = nn.Linear(16, 3)

    def forward(self, x):
        h = F.relu(self.norm(self.conv(x)))
        return self.out(self.drop(h).flatten(1))


def make_sgd(parameters):
    return optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=1e-3)


def make_adam(parameters):
    return optim.Adam(parameters, lr=0.01)


class Run:
    """A net, its optimizer and a step; `captured` or not."""

    def __init__(self, make=make_sgd, captured=True, warmup=2, clip=None, **net):
        cg.manual_seed(3)
        self.net = Net(**net)
        self.optimizer = make(self.net.parameters())
        self.clip = clip
        self.call = cg.cuda.capture(self.step, warmup=warmup) if captured else self.step

    def step(self, x, target):
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.net(x), target)
        loss.backward()
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.net.parameters(), self.clip)
        self.optimizer.step()
        return loss

    def train(self, steps=6, schedule=None):
        schedule = None if schedule is None else schedule(self.optimizer)
        losses = []
        cg.manual_seed(5)
        for x, target in batches(steps):
            losses.append(self.call(x, target).item())
            if schedule is not None:
                schedule.step()
        return losses

    def state(self):
        found = {k: v.numpy(force=True) for k, v in self.net.state_dict().items()}
        for i, kept in enumerate(self.optimizer.state.values()):
            found |= {f"{i}.{k}": cg.Tensor(v).numpy() for k, v in kept.items()}
        return found


def assert_same_bits(a, b):
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert value.tobytes() == b[name].tobytes(), name


def halving(optimizer):
    return optim.lr_scheduler.StepLR(optimizer, 1, 0.5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_cast_of_autocast_from_before_the_call_is_not_captured(dtype):
    """The region keeps a parameter's cast; a graph that read it would see the weights of then."""
    eager, captured = Run(captured=False), Run()
    losses = []
    for run in (eager, captured):
        cg.manual_seed(5)
        with cg.autocast(dtype):
            for x, target in batches(6):
                run.net(x)  # casts every parameter
                losses.append(run.call(x, target).item())
    assert losses[:6] == losses[6:] and len(set(losses)) == 6
    assert_same_bits(eager.state(), captured.state())


class ScaledRun(Run):
    """A step of float16 with a GradScaler that doubles its scale every other good step."""

    def __init__(self, **how):
        super().__init__(**how)
        self.scaler = cg.GradScaler(init_scale=256.0, growth_interval=2)

    def step(self, x, target):
        self.optimizer.zero_grad()
        with cg.autocast("float16"):
            loss = F.cross_entropy(self.net(x), target)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss


def test_a_scaler_inside_skips_and_grows_as_eager():
    runs = [ScaledRun(captured=False), ScaledRun()]
    scales = []
    for run in runs:
        cg.manual_seed(5)
        for i, (x, target) in enumerate(batches(9)):
            before = run.net.out.weight.numpy(force=True)
            run.call(x * float("inf") if i == 6 else x, target)
            same = (run.net.out.weight.numpy(force=True) == before).all()
            assert same == (i == 6)  # replayed by then: the first two calls warm up
            scales.append(run.scaler.get_scale())
    assert scales[:9] == scales[9:] and scales[6] < scales[5] > scales[0]
    np.testing.assert_array_equal(*(run.net.out.weight.numpy(force=True) for run in runs))


@pytest.mark.parametrize(
    ("how", "schedule"),
    [
        ({}, None),
        ({"make": make_adam}, None),
        ({}, halving),
        ({"make": make_adam, "clip": 0.5}, halving),
        ({"momentum": None}, None),
    ],
    ids=["SGD", "Adam", "schedule", "clipped", "mean of all batches"],
)
def test_captured_steps_have_the_bits_of_eager_ones(how, schedule):
    eager, captured = Run(captured=False, **how), Run(**how)
    assert eager.train(schedule=schedule) == captured.train(schedule=schedule)
    assert_same_bits(eager.state(), captured.state())
    assert captured.net.norm.num_batches_tracked.item() == 6


def test_a_schedule_and_a_mask_change_what_a_replay_does():
    def losses(schedule, p):
        return Run(p=p).train(6, schedule)

    plain, scheduled = losses(None, 0.0), losses(halving, 0.0)
    assert plain[:2] == scheduled[:2]  # the first step's rate is the same
    assert all(a != b for a, b in zip(plain[2:], scheduled[2:]))
    run = Run(make=lambda p: optim.SGD(p, lr=0.0))
    x, target = next(batches(1))
    found = {run.call(x, target).item() for _ in range(6)}
    assert len(found) == 6  # equal weights and batches, six masks


def test_results_gradients_and_structures():
    weight = cg.tensor([2.0, 3.0], requires_grad=True)

    @cg.cuda.capture(warmup=1)
    def step(batch, scale=1):
        weight.grad = None
        y = weight * batch["x"][0] * scale
        y.sum().backward()
        return {"y": y, "both": (y, scale)}

    for k in range(1, 5):
        x = cg.tensor([float(k), 1.0])
        out = step({"x": (x,)}, scale=2)
        assert out["y"].tolist() == [4.0 * k, 6.0] and out["both"][1] == 2
        assert not out["y"].requires_grad and weight.grad.tolist() == [2.0 * k, 2.0]
    assert step.__name__ == "step"
    first, second = step({"x": (x,)}, scale=2), step({"x": (x + 1.0,)}, scale=2)
    assert first["y"] is second["y"]  # the graph's own: clone() what is to be kept


def test_each_shape_has_a_graph_of_its_own():
    eager, captured = Run(captured=False), Run(warmup=1)
    for run in (eager, captured):
        cg.manual_seed(5)
        for i in range(6):
            for x, target in batches(1, n=4 if i % 2 else 3, seed=i):
                run.call(x, target)
    assert len(captured.call._graphs) == 2
    assert_same_bits(eager.state(), captured.state())


def test_numbers_are_brought_up_to_date_however_many():
    base = [0.0]

    @cg.cuda.capture(warmup=1)
    def step(x):
        numbers = [BACKEND.changing(lambda i=i: np.array([base[0] + i])) for i in range(700)]
        return cg.Tensor(BACKEND.xp.concatenate(numbers))

    for k in (0, 1, 1, 5, 2):
        base[0] = 1000.0 * k
        assert step(cg.ones(1)).tolist() == [1000 * k + i for i in range(700)]


def test_on_the_cpu_the_step_is_called():
    step = cg.cuda.capture(lambda x: x.item(), warmup=1)
    assert [step(cg.tensor(2.0, device="cpu")) for _ in range(3)] == [2, 2, 2]


def test_memory_is_not_what_others_write_to():
    eager, captured = Run(captured=False), Run()
    for i, (x, target) in enumerate(batches(8)):
        for run in (eager, captured):
            cg.manual_seed(i)
            run.call(x, target)
        junk = [cg.full((n,), float(i)) for n in range(1, 400, 7)]  # allocate and scribble
        del junk
        gc.collect()
    assert_same_bits(eager.state(), captured.state())


def test_states_are_loaded_into_what_the_graph_works_on():
    run, other = Run(make=make_adam), Run(make=make_adam, captured=False)
    run.train(5)
    saved = run.optimizer.state_dict(), run.net.state_dict()
    saved = saved[0], {k: v.clone() for k, v in saved[1].items()}
    for r in (run, other):
        r.train(4)
        r.optimizer.load_state_dict(saved[0])
        r.net.load_state_dict(saved[1])
        cg.manual_seed(8)
        r.train(2)
    assert_same_bits(run.state(), other.state())


def test_methods_are_captured_per_instance():
    class Counter:
        def __init__(self, by):
            self.by, self.total = by, cg.zeros(1)

        @cg.cuda.capture(warmup=1)
        def step(self, x):
            self.total.add_(x * self.by)
            return self.total

    a, b = Counter(1.0), Counter(10.0)
    x = cg.tensor([1.0])
    for k in range(1, 4):
        assert a.step(x).tolist() == [k] and b.step(x).tolist() == [10 * k]


def test_versions_count_replays():
    weight, x = cg.tensor([1.0], requires_grad=True), cg.tensor([1.0])
    double = cg.cuda.capture(lambda x: x * 2.0, warmup=1)
    double(x)
    y = (weight * double(x)).sum()
    double(x)
    with pytest.raises(RuntimeError, match="changed in place"):  # its result was
        y.backward()
    run = Run()
    run.train(4)
    kept = run.net.out.weight * 2.0
    loss = (kept * run.net.out.weight).sum()
    run.train(1)
    with pytest.raises(RuntimeError, match="changed in place"):
        loss.backward()


# ---- what a captured step may not do ----


def refused(step, match, *args):
    captured = cg.cuda.capture(step, warmup=1)
    captured(*args)
    with pytest.raises(RuntimeError, match=match):
        captured(*args)
    # Nothing is left of the attempt.
    assert cg.ones(2).tolist() == [1, 1] and cg.capturing.recorder() is None


@pytest.mark.parametrize(
    ("name", "wait"),
    [
        ("item", lambda x: x.item()),
        ("tolist", lambda x: x.tolist()),
        ("numpy", lambda x: x.numpy()),
        ("array", lambda x: np.asarray(x)),
        ("bool", lambda x: bool(x > 0)),
        ("float", float),
        ("int", int),
        ("format", lambda x: f"{x:.2f}"),
        ("repr", repr),
        ("cpu", lambda x: x.cpu()),
        ("cuda", lambda x: cg.zeros(1, device="cpu").cuda()),
        ("tensor", lambda x: cg.tensor([1.0])),
        ("synchronize", lambda x: cg.cuda.synchronize()),
    ],
)
def test_waiting_is_refused_by_name(name, wait):
    refused(lambda x: wait(x) and None, rf"\[{name}\] .*captured step", cg.tensor(1.5))


def test_hidden_waits_are_refused_too():
    weight = cg.tensor([1.0], requires_grad=True)
    optimizer = optim.SGD([weight], lr=0.1)
    plateau = optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    steps = optim.lr_scheduler.StepLR(optimizer, 1)

    def clip(x):
        weight.grad = x * 1.0
        nn.utils.clip_grad_norm_([weight], 1.0, error_if_nonfinite=True)

    x = cg.tensor([2.0])
    refused(clip, r"\[clip_grad_norm_\] .*captured step", x)
    refused(lambda x: plateau.step(1.0), r"\[ReduceLROnPlateau.step\] .*captured step", x)
    refused(lambda x: steps.step(), r"\[StepLR.step\] .*captured step", x)
    refused(lambda x: x[x > 0], "the current stream is capturing", x)


def test_gradients_from_before_are_refused():
    weight = cg.tensor([1.0], requires_grad=True)

    def step(x, clear=False):
        if clear:
            weight.grad = None
        for _ in range(2):  # the second one is added to the first
            (weight * x).sum().backward()
        return weight.grad

    x = cg.tensor([2.0])
    refused(step, r"\[backward\] .*zero_grad\(\) belongs into the step", x)
    captured = cg.cuda.capture(step, warmup=1)
    assert [captured(x, clear=True).tolist() for _ in range(3)] == [[4.0]] * 3


def test_options_that_choose_a_kernel_cannot_change():
    run = Run()
    run.train(4)
    run.optimizer.param_groups[0]["momentum"] = 0
    with pytest.raises(RuntimeError, match=r"\[SGD\] These options .*captured.*'momentum': 0"):
        run.train(1)


def test_bad_arguments():
    for error, match, call in (
        (ValueError, "warmup must be an int >= 1. Got 0", lambda: cg.cuda.capture(abs, warmup=0)),
        (TypeError, "step must be callable. Got int", lambda: cg.cuda.capture(3)),
        (ValueError, "at least one argument .*Got none", lambda: cg.cuda.capture(abs)()),
        (ValueError, "must not require", lambda: cg.cuda.capture(abs)(nn.Linear(1, 1).weight)),
        (TypeError, "must be hashable. Got set", lambda: cg.cuda.capture(abs)(cg.ones(1), {1})),
        (TypeError, r"must be tensors. Got an array", lambda: cg.cuda.capture(abs)(np.ones(1))),
    ):
        with pytest.raises(error, match=rf"(?i)\[capture\] .*{match}"):
            call()


@pytest.mark.skipif(not ON_CPU and cg.cuda.device_count() < 2, reason="needs two GPUs")
def test_one_gpu():
    here, there = cg.tensor([1.0], device="cuda:0"), cg.tensor([1.0], device="cuda:1")
    with pytest.raises(ValueError, match=r"one device. Got cuda:0 and cuda:1"):
        cg.cuda.capture(lambda a, b: a)(here, there)
    elsewhere = r"\[\w+\] A captured step runs on one GPU, cuda:0. Got an array of cuda:1"
    refused(lambda x: F.relu(there), elsewhere, here)

    def switch(x):
        with cg.cuda.device(1):
            pass

    refused(switch, r"\[device\] .*one GPU, cuda:0. Got cuda:1", here)
    run = cg.cuda.capture(lambda x: x * 2.0, warmup=1)
    assert [run(there).tolist() for _ in range(3)] == [[2.0]] * 3
    assert run(there).device == "cuda:1" and cg.cuda.current_device() == 0


def test_bad_values_are_raised_by_the_next_wait():
    run = Run()
    run.train(4)
    x, target = next(batches(1))
    loss = run.call(x, target + 7)
    with pytest.raises(ValueError, match=r"\[cross_entropy\] .* in \[0, 3\)\. Got \d+ "):
        loss.item()


# ---- the simulator sees what would go wrong on a card ----


class _NoPool:
    """The broken twin: the step's memory is CuPy's default pool's."""

    malloc = staticmethod(lambda size: BACKEND.xp.cuda.alloc(size))

    def __new__(cls):
        from tests import cupy_standin_cuda

        pool = object.__new__(cls)
        pool.malloc = cupy_standin_cuda._default_alloc
        return pool


@simulated
def test_without_a_pool_of_its_own_a_replay_writes_to_freed_memory(monkeypatch):
    monkeypatch.setattr(BACKEND.xp.cuda, "MemoryPool", _NoPool)
    run = Run()
    with pytest.raises(RuntimeError, match="use after free|out of bounds"):
        run.train(6)


@simulated
def test_results_are_there_after_a_wait_only():
    run = cg.cuda.capture(lambda x: x * 2.0, warmup=1)
    x = cg.tensor([1.0, 2.0])
    run(x + 4.0)
    out = run(x)
    assert out.array._host.tolist() != [2, 4]  # but what the memory held before
    assert out.tolist() == [2, 4]
    other = BACKEND.xp.cuda.Stream(non_blocking=True)
    run(x + 1.0)
    with other:  # waits for its own work alone
        assert out.array.get().tolist() == [2, 4]
    assert out.tolist() == [4, 6]
    run(x)
    with other:
        result = run(x + 2.0)  # comes after what the first stream was given
        assert result.tolist() == [6, 8]


@simulated
def test_capturing_runs_nothing():
    x, seen = cg.tensor([1.0]), []
    total = cg.zeros(1)

    def step(x):
        total.array[...] += x.array
        seen.append(total.array._host.copy())
        return total

    captured = cg.cuda.capture(step, warmup=1)
    for k in (1, 2, 3):
        assert captured(x).tolist() == [k]
    assert [v.tolist() for v in seen] == [[1], [1]]


# ---- the benchmark ----


def test_the_benchmarks_captured_side_does_what_the_other_does():
    from convgrad.bench.race import _fastest
    from convgrad.bench.report import race_table
    from convgrad.bench.trainers import trainer
    from convgrad.bench.workloads import Workload

    def build(nn, cat):
        return nn.Sequential(nn.Flatten(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))

    small = Workload("small", build, (5, 1, 6), 3)
    eager = trainer(small, device="cuda")
    captured = trainer(small, eager.state(), device="cuda", captured=True)
    assert [eager.step() for _ in range(6)] == [captured.step() for _ in range(6)]
    assert_same_bits(eager.state(), captured.state())
    assert_same_bits(eager.gradients(), captured.gradients())
    ms = {"torch": 2.0, "torch captured": 1.0, "convgrad captured": 0.5, "convgrad": 1.0}
    assert _fastest(ms, captured=False) == "torch"
    assert _fastest(ms, captured=True) == "torch captured"
    row = {"workload": "small", "ms": ms, "ratio": 2.0, "ratios": [2.0], "captured": 2.0}
    assert "|     2.00 |" in race_table([row | {"agreement": {}}])
