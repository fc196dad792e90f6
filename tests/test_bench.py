"""`convgrad bench` on small settings, and what its figures are made of."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import numpy as np
import pytest

import convgrad as cg
from convgrad import _cpu
from convgrad.bench import cases, explain, machine, memory, ops, overhead, race, report, trainers
from convgrad.bench.timing import in_turn, median
from convgrad.bench.workloads import WORKLOADS
from tests.test_cli import convgrad

pytestmark = pytest.mark.cpu("of the CPU's benchmarks")

CONV1D = WORKLOADS["conv1d-150"]


@pytest.fixture
def no_peers(monkeypatch):
    """As if neither PyTorch nor any other peer were installed."""
    monkeypatch.setattr(trainers.importlib.util, "find_spec", lambda name: None)


@pytest.fixture
def few_cases(monkeypatch):
    """Two cases, so that a table is there in a moment."""
    chosen = [case for case in cases.all_cases() if case.op in ("sgd", "conv1d")][-3:]
    monkeypatch.setattr(cases, "all_cases", lambda device="cpu": chosen)
    return chosen


# ---- timing ----


@pytest.mark.quick
def test_calls_are_timed_in_turn():
    order = []
    blocks = in_turn(
        {name: (lambda name=name: (order.append(name), time.sleep(1e-3))) for name in "ab"},
        3,
        0.004,
    )
    runs = [name for i, name in enumerate(order) if i == 0 or order[i - 1] != name]
    assert runs == list("ababab")
    assert all(len(rounds) == 3 for rounds in blocks.values())
    assert 1e-3 <= median(blocks["a"]) < 1e-2


def test_short_calls_are_timed_several_at_once():
    count = [0]

    def call() -> None:
        count[0] += 1

    blocks = in_turn({"a": call}, 1, 0.01)
    assert count[0] > 5 * len(blocks["a"][0]) and median(blocks["a"]) < 1e-5


# ---- the race ----


@pytest.mark.parametrize("name", ["conv1d-150", "mlp"])
def test_the_sides_agree(torch, name):
    found = race.check(WORKLOADS[name])
    assert found["gradient"] < 1e-4 and found["state"] < 1e-4 and found["loss_fall"] > 0.1
    assert race.check(WORKLOADS[name], inference=True)["output"] < 1e-5


def test_a_wrong_gradient_is_not_raced(torch, monkeypatch):
    right = trainers.Trainer.gradients

    def wrong(side):
        gradients = right(side)
        if isinstance(side.x, cg.Tensor):
            gradients["3.bias"] *= 1.01
        return gradients

    monkeypatch.setattr(trainers.Trainer, "gradients", wrong)
    with pytest.raises(
        race.NotARaceError, match=r"gradients of convgrad and torch differ by 1.0e-02"
    ):
        race.race(CONV1D, 1, 0.0)


def test_another_batch_is_tried_where_one_flips_a_relu(torch, monkeypatch):
    seen = []

    def worst(ours, theirs):
        seen.append(1)
        return 1.0 if len(seen) == 1 else 0.0

    monkeypatch.setattr(race, "worst_difference", worst)
    assert race.check(CONV1D)["batch"] == CONV1D.seed + 1


def test_a_step_that_does_not_learn_is_not_raced(torch, monkeypatch):
    monkeypatch.setattr(cg.optim.SGD, "step", lambda self: None)
    with pytest.raises(race.NotARaceError, match="the loss fell by 0%"):
        race.check(CONV1D)


def test_a_wrong_output_is_no_inference(torch, monkeypatch):
    monkeypatch.setattr(
        trainers.Trainer,
        "output",
        lambda side: {"output": np.full(3, isinstance(side.x, cg.Tensor))},
    )
    with pytest.raises(race.NotARaceError, match="outputs"):
        race.check(CONV1D, inference=True)


def test_nan_never_agrees():
    ones = {"a": np.ones(3)}
    assert race.worst_difference({"a": np.array([1, np.nan, 1])}, ones) == float("inf")
    assert race.worst_difference(ones, ones) == 0
    with pytest.raises(race.NotARaceError, match="names"):
        race.worst_difference({"b": np.ones(3)}, ones)


def test_a_race_says_who_is_how_much_faster(torch):
    row = race.race(CONV1D, 2, 0.01)
    assert row["best"] == "torch" and list(row["ms"]) == ["torch", "convgrad"]
    assert row["ratio"] == row["ms"]["torch"] / row["ms"]["convgrad"] and len(row["ratios"]) == 2
    images = [peer.name for peer in trainers.peers_of(WORKLOADS["lenet"])]
    assert images == ["torch", "torch channels_last"]
    assert trainers.peers_of(CONV1D, compiled=True)[-1].compiled


def test_a_peer_that_cannot_be_told_its_threads_runs_only_with_all(monkeypatch):
    monkeypatch.setattr(
        trainers.importlib.util, "find_spec", lambda name: name if name == "jax" else None
    )
    monkeypatch.setattr(trainers.os, "cpu_count", lambda: 3)
    for threads, names in ((2, []), (3, ["jax"])):
        cg.set_num_threads(threads)
        assert [peer.name for peer in trainers.peers_of(CONV1D)] == names


@pytest.mark.parametrize("name", ["conv1d-150", "mlp", "lenet", "unet2d"])
def test_jax_agrees(name, monkeypatch):
    pytest.importorskip("jax", reason="a peer that convgrad's extras do not bring")
    monkeypatch.setattr(trainers, "PEERS", trainers.PEERS[-1:])
    cg.set_num_threads(trainers.os.cpu_count())
    found = race.check(WORKLOADS[name])
    assert found["gradient"] < 1e-4 and found["state"] < 1e-4
    assert race.check(WORKLOADS[name], inference=True)["output"] < 1e-5


# ---- what the figures are made of ----


@pytest.mark.kernel
def test_multiply_adds_on_registers():
    """x -> 0.75 x + 0.25 comes to rest at 1; the FLOPs are those of the rounds done."""
    for dtype in (np.float32, np.float64):
        y = np.empty(5, dtype)
        one, two = _cpu.fma_rounds(y, 1), _cpu.fma_rounds(y, 2)
        assert two == 2 * one and one % (2 * y.size) == 0
        chains = round(float(y[0]))
        assert 1 < chains <= 12 and np.abs(y - chains).max() < 1e-5
        assert _cpu.fma_rounds(y, 0) == 0
    with pytest.raises(ValueError, match="Got -1"):
        _cpu.fma_rounds(y, -1)
    with pytest.raises(ValueError, match=r"Got shape \(2, 2\)"):
        _cpu.fma_rounds(np.empty((2, 2), np.float32), 1)


@pytest.mark.kernel
def test_copy_dense():
    x = np.arange(100_000, dtype=np.float32)
    y = np.full_like(x, np.nan)
    _cpu.copy_dense(x, y)
    assert (x == y).all()
    for wrong in (y[::2], y[1:], y.astype(np.float64)):
        with pytest.raises(ValueError, match="Got"):
            _cpu.copy_dense(x, wrong)


def test_ceilings_are_plausible():
    found = machine.ceilings(0.01)
    assert 1 < found["fma_gflops"] < 1e5
    assert all(0.1 < speed < 1e5 for speed in found["copy_gbytes"].values())


def test_every_case_runs_and_names_itself():
    every = cases.all_cases()
    assert len({str(case) for case in every}) == len(every)
    for case in every:
        assert case.flops > 0 or not case.op.startswith(("conv", "linear"))
        assert case.bytes > 0
        if case.quick and case.op != "sgd":
            call = case.make(ops.CONVGRAD)
            first, second = ([np.array(t.numpy()) for t in _tuple(call())] for _ in range(2))
            assert all((a == b).all() for a, b in zip(first, second))


def _tuple(result):
    return result if isinstance(result, tuple) else (result,)


def test_flops_and_bytes_of_a_convolution():
    forward, *_ = cases.conv_cases("", (2, 3, 8, 8), (5, 3, 3, 3), stride=2)
    assert forward.flops == 2 * (2 * 5 * 4 * 4) * 27
    assert forward.bytes == 4 * (2 * 3 * 64 + 5 * 27 + 2 * 5 * 16)
    forward, *_ = cases.conv_cases("", (2, 6, 4, 4), (6, 5, 2, 2), stride=2, transposed=True)
    assert forward.flops == 2 * (2 * 6 * 4 * 4) * 5 * 4
    assert forward.bytes == 4 * (2 * 6 * 16 + 6 * 5 * 4 + 2 * 5 * 64)


def test_operations_beside_pytorch(torch, few_cases):
    ceilings = {"fma_gflops": 100.0, "copy_gbytes": {1: 50.0, 64: 10.0}}
    rows = ops.measure(few_cases, ceilings, 1, 0.001)
    assert [row["op"] for row in rows] == ["conv1d", "conv1d", "sgd"]
    conv, sgd = rows[0], rows[-1]
    assert set(conv["ms"]) == {"convgrad", "torch", "torch channels_last"} and conv["ratio"] > 0
    assert sgd["bound"] == "copy" and sgd["gflops"] == 0
    assert sgd["percent"] == pytest.approx(100 * sgd["gbytes"] / 10)
    assert conv["percent"] == pytest.approx(max(conv["gflops"], 2 * conv["gbytes"]), rel=1e-6)


@pytest.mark.skipif("not memory.STATUS.exists()", reason="reads /proc")
def test_peak_memory_holds_at_least_the_weights(no_peers):
    row = memory.measure(WORKLOADS["mlp"])
    # Weights, gradients and momentum of 784 x 256.
    assert 3 * 784 * 256 * 4 / 2**20 < row["mb"]["convgrad"] < 100 and row["ratio"] is None


def test_overhead_sets_the_threads_back():
    cg.set_num_threads(3)
    rows = overhead.calls(1, 0.0005)
    assert cg.get_num_threads() == 3
    assert {"add", "conv2d"} < {row["op"] for row in rows}
    assert all(row["both_us"]["convgrad"] > 0 for row in rows)


# ---- explain ----


def test_every_convolution_of_a_workload_is_explained():
    found = explain.convolutions(WORKLOADS["unet2d"])
    assert len(found) == 13 and sum(conv.transposed for conv in found) == 2
    assert found[0].x_shape == (4, 1, 128, 128) and found[0].w_shape == (16, 1, 3, 3)
    assert str(found[6]) == "conv_transpose2d 2x2 64->32 @64x64 batch 4 stride 2"
    for conv in found:
        assert list(conv.algorithms()) == list(explain.PASSES)


def test_explain_asks_for_what_a_transposed_convolution_computes(monkeypatch):
    monkeypatch.setattr(_cpu, "conv_algorithm", lambda *args: args[-1])
    conv = explain.Convolution((1, 2, 8, 8), (4, 2, 2, 2), stride=2, transposed=True)
    assert conv.algorithms()["forward"] == "backward_input"
    assert conv.algorithms()["backward_input"] == "forward"


# ---- the command ----


def test_training_end_to_end(torch, capsys, tmp_path):
    file, picture = tmp_path / "new" / "race.json", tmp_path / "race.png"
    code, out, err = convgrad(
        capsys,
        "bench",
        "training",
        "mlp",
        "--quick",
        "--threads",
        2,
        "--json",
        file,
        "--png",
        picture,
    )
    assert code == 0, err
    assert out[0].startswith(f"convgrad {cg.__version__}") and "2 threads of" in out[0]
    assert any(line.startswith("| mlp") for line in out)
    assert out[-1].startswith("Geometric mean of the ratios: ")
    results = json.loads(file.read_text())
    assert results["about"]["isa"] == _cpu.isa_name() and results["about"]["peers"]["torch"]
    (row,) = results["training"]
    assert set(row) == {"workload", "ms", "best", "ratio", "ratios", "captured", "agreement"}
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_without_a_peer_convgrad_runs_alone(no_peers, capsys):
    code, out, err = convgrad(capsys, "bench", "--quick", "--rounds", 1)
    assert code == 0, err
    assert [line.split()[1] for line in out if line.startswith("| ")][1:] == ["conv1d-150", "lenet"]
    assert out[-1].startswith("No peer is installed: convgrad alone.")


def test_options_before_and_behind_the_name_are_the_same(no_peers, capsys, few_cases):
    for args in (["--threads", 1, "ops"], ["ops", "--threads", 1]):
        code, out, err = convgrad(capsys, "bench", "--quick", *args, "--op", "sgd")
        assert code == 0, err
        assert "; 1 threads of" in out[0] and sum("sgd 1M parameters" in line for line in out) == 1


def test_inference_memory_and_overhead(no_peers, capsys):
    for args, text in (
        (["inference", "mlp"], "| mlp"),
        (["memory", "mlp"], "| mlp"),
        (["overhead", "--rounds", 1, "--seconds", 0.01], "Import, beyond starting Python"),
    ):
        code, out, err = convgrad(capsys, "bench", *args, "--quick")
        assert code == 0 and any(line.startswith(text) for line in out), err


@pytest.mark.quick
def test_explain_end_to_end(capsys):
    code, out, _ = convgrad(capsys, "bench", "explain", "conv1d-150", "mlp")
    assert code == 0 and sum(line.startswith("| conv1d 3 ") for line in out) == 2
    assert out[-1] == "no convolutions"
    code, out, _ = convgrad(capsys, "bench", "explain", "64x32x32x32", "k=32x32x3x3", "p=1")
    assert code == 0 and out[-1].startswith("| conv2d 3x3 32->32 @32x32 batch 64 | ")


def test_exact_algorithms_alone(capsys):
    for exact in ([], ["--exact"]):
        code, out, _ = convgrad(capsys, "bench", *exact, "explain", "vgg-cifar")
        assert code == 0 and any("| winograd" in line for line in out) == (not exact)
        assert ("exact" in out[0]) == bool(exact)
    assert not cg.is_exact()


def test_all_leaves_three_files(torch, capsys, tmp_path, monkeypatch, few_cases):
    monkeypatch.setattr("convgrad.cli.bench.WORKLOADS", {"mlp": WORKLOADS["mlp"]})
    monkeypatch.setattr("convgrad.cli.bench.QUICK_WORKLOADS", ("mlp",))
    monkeypatch.setattr(overhead, "imports", lambda repeats: {"numpy": 1.0})  # run above
    code, _, err = convgrad(capsys, "bench", "all", "--quick", "--rounds", 1, "--out", tmp_path)
    assert code == 0, err
    names = sorted(path.suffix for path in tmp_path.iterdir())
    assert names == [".json", ".md", ".png"]
    results = json.loads(next(tmp_path.glob("*.json")).read_text())
    races = {"training", "training_exact", "training_1_thread", "inference"}
    others = {"about", "memory", "ceilings", "ops", "overhead", "imports"}
    assert results.keys() == races | others
    text = next(tmp_path.glob("*.md")).read_text()
    for title in ("## Training steps", "## Inference", "## Operations", "## Peak memory"):
        assert title in text


@pytest.mark.quick
@pytest.mark.parametrize(
    "command", [[], *([c] for c in ("training", "inference", "ops", "memory", "all", "explain"))]
)
def test_help(capsys, command):
    code, out, err = convgrad(capsys, "bench", *command, "--help")
    assert code == 0 and not err
    assert out[0].startswith(" ".join(["usage: convgrad bench", *command]))


@pytest.mark.quick
@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["training", "alexnet"], "unknown workload 'alexnet'; known: conv1d-150, mlp"),
        (["explain", "alexnet"], "unknown workload 'alexnet'"),
        (["explain", "64x32x32x32"], "not a convolution: 64x32x32x32"),
        (["explain", "64x32x32x32", "k=32x31x3x3"], "must have 31 channels"),
        (["explain", "64x32x32x32", "q=3"], "not a convolution"),
        (["ops", "--op", "fft"], "invalid choice: 'fft'"),
        (["--rounds", "0"], "must be a whole number above 0"),
        (["all"], "required: --out"),
        (["dance"], "invalid choice: 'dance'"),
    ],
)
def test_wrong_usage(capsys, args, message):
    code, _, err = convgrad(capsys, "bench", *args)
    assert code == 2 and message in err


def test_a_failed_check_is_exit_code_1(torch, capsys, monkeypatch):
    monkeypatch.setattr(race, "TOLERANCE", 0.0)
    code, _, err = convgrad(capsys, "bench", "training", "mlp", "--quick")
    assert code == 1 and "not a race" in err


# ---- the report ----


@pytest.mark.quick
def test_geometric_mean_also_without_the_slow_one():
    rows = [
        {"workload": name, "ms": {"torch": ratio, "convgrad": 1.0}, "ratio": ratio,
         "ratios": [ratio, 2 * ratio], "agreement": {"gradient": 1e-6}}
        for name, ratio in (("mlp", 2.0), ("lenet", 8.0), ("unet3d", 32.0))
    ]  # fmt: skip
    text = report.race_table(rows)
    assert text.endswith("Geometric mean of the ratios: 8.00; without unet3d: 4.00")
    assert "| lenet    |     8.00 |        1.00 |  8.00 |  8.00-16.00 |            1e-06 |" in text


def test_instruction_counts_name_their_kernels():
    from bench import instructions

    known = {str(case) for case in cases.all_cases()}
    small = {case for case, _ in instructions.KERNELS.values() if case.startswith("conv")}
    assert {case for case, _ in instructions.KERNELS.values()} - small <= known
    for counts in json.loads(instructions.EXPECTED.read_text()).values():
        assert counts.keys() == instructions.KERNELS.keys()
    done = subprocess.run(
        [sys.executable, "-m", "bench.instructions", "--help"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "--update" in done.stdout


def test_explain_as_an_option(capsys):
    code, lines, _ = convgrad(capsys, "bench", "--explain")
    assert code == 0
    assert lines[1:] == convgrad(capsys, "bench", "explain")[1][1:]  # the first tells the load


# ---- how much of a task's training lies outside kernels ----


@pytest.mark.large("trains networks")
def test_time_outside_kernels_is_what_is_missing():
    from bench.tasks import Watch

    from convgrad import backend, nn, optim, train

    class Slow(train.Callback):
        def batch(self, run):
            time.sleep(0.05)

    before = backend.CPU.lib
    x = np.random.default_rng(0).standard_normal((4, 8, 64, 64)).astype(np.float32)
    target = np.zeros((4, 64, 64), np.int64)

    def outside(callbacks):
        model = nn.Conv2d(8, 8, 3, padding=1)
        optimizer = optim.SGD(model.parameters(), lr=0.01)
        with Watch() as watch:
            train.fit(
                model, [(x, target)] * 4, nn.CrossEntropyLoss(), optimizer, 2, callbacks=callbacks
            )
        assert {"conv_forward", "conv_backward_weight"} <= watch.kernels.keys()
        assert 0 < watch.outside_processor() < 1
        return watch.outside(), watch.wall

    without, _ = outside([])
    share, wall = outside([Slow()])
    assert 0 < without < share < 1 and share * wall >= 8 * 0.05
    assert backend.CPU.lib is before is backend._LIB_BY_TYPE[np.ndarray]


@pytest.mark.large("trains networks")
def test_the_tissue_step_learns_its_simulated_scans():
    pytest.importorskip("nilearn", reason="needs: pip install '.[medical]'")
    from bench.tissue import TISSUE

    x, t = TISSUE.batch()
    assert x.shape == TISSUE.input_shape and t.shape == (2, 32, 32, 32)
    side = trainers.trainer(TISSUE)
    losses = [side.step() for _ in range(5)]
    assert losses[-1] < 0.9 * losses[0]
