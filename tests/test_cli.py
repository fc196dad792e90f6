"""The command line, end to end, on small settings."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import convgrad as cg
from convgrad import tasks
from convgrad.cli.main import main
from convgrad.cli.train import open_run
from tests.test_digits import write_mnist

pytestmark = pytest.mark.cpu("runs commands, which choose their device themselves")

pytest.importorskip("sklearn", reason="needs: pip install '.[demo]'")
pytest.importorskip("safetensors", reason="needs: pip install '.[demo]'")

RUN_FILES = [
    "config.json",
    "confusion_matrix.png",
    "feature_maps.png",
    "filters.png",
    "heat_maps.png",
    "learning_curves.png",
    "metrics.jsonl",
    "model.safetensors",
]


def convgrad(capsys, *args):
    """(exit code, lines of standard output, standard error)."""
    try:
        code = main([str(a) for a in args])
    except SystemExit as stop:  # argparse
        code = stop.code
    captured = capsys.readouterr()
    return code, captured.out.splitlines(), captured.err


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory):
    """(folder, printed lines) of two epochs of the default network."""
    folder = tmp_path_factory.mktemp("run") / "digits"
    command = [sys.executable, "-m", "convgrad", "train", "digits", "--epochs", "2"]
    result = subprocess.run(
        [*command, "--batch-size", "64", "--seed", "1", "--out", str(folder)],
        capture_output=True,
        text=True,
        check=True,
    )
    return folder, result.stdout.splitlines()


# ---- train, evaluate, predict ----


def test_train_digits_prints_epochs_and_last_the_test_accuracy(digits_run):
    folder, lines = digits_run
    assert lines[0].startswith("digits: 1100 training and 157 validation images; cnn with ")
    assert str(folder) in lines[0]
    for i in (1, 2):
        assert lines[i].startswith(f"epoch {i}/2  loss ")
        for name in ("accuracy", "val_loss", "val_accuracy"):
            assert f"  {name} 0." in lines[i]
    word, kind, value = lines[-1].split()
    assert (word, kind, len(value)) == ("test", "accuracy", 6) and 0.5 < float(value) <= 1


def test_run_folder_holds_everything(digits_run):
    folder, lines = digits_run
    assert sorted(os.listdir(folder)) == RUN_FILES
    config = json.loads((folder / "config.json").read_text())
    expected = {
        "task": "digits",
        "model": "cnn",
        "epochs": 2,
        "batch_size": 64,
        "seed": 1,
        "l1": 0.0,
        "optimizer": "sgd",
        "momentum": 0.9,
        "training_images": 1100,
        "validation_images": 157,
        "device": "cpu",
        "convgrad": cg.__version__,
    }
    assert {key: config[key] for key in expected} == expected
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row.get("epoch") for row in rows] == [1, 2, None]
    assert f"test accuracy {rows[-1]['test_accuracy']:.4f}" == lines[-1]
    weights = cg.io.load(folder / "model.safetensors")
    assert weights["0.weight"].shape == (32, 1, 3, 3)
    for name in (name for name in RUN_FILES if name.endswith(".png")):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")


def test_evaluate_gives_the_accuracy_of_training(digits_run, capsys):
    folder, lines = digits_run
    code, out, _ = convgrad(capsys, "evaluate", folder)
    assert code == 0 and out[-1] == lines[-1]
    assert len(out) == 13 and sum(int(line.split()[1]) for line in out[1:11]) == 540


def test_predict_agrees_with_the_model(digits_run, capsys, tmp_path):
    from PIL import Image

    folder, _ = digits_run
    config, _, model = open_run(folder)
    test = tasks.get(config["task"]).load(seed=config["seed"]).test()
    logits = cg.train.predict(model, test.images[:3])
    odds = np.exp(logits - logits.max(1, keepdims=True))
    expected = [f"{row.argmax()}  {row.max():.4f}" for row in odds / odds.sum(1, keepdims=True)]
    floats, inverted, large = tmp_path / "a.npy", tmp_path / "b.npy", tmp_path / "c.png"
    np.save(floats, test.images[0, 0])
    np.save(inverted, 1 - test.images[1, 0])
    pixels = np.round(test.images[2, 0] * 255).astype(np.uint8)
    Image.fromarray(np.stack([pixels] * 3, 2)).save(large)
    code, out, _ = convgrad(capsys, "predict", folder, floats)
    assert code == 0 and out == [f"{floats}  {expected[0]}"]
    code, out, _ = convgrad(capsys, "predict", folder, inverted, "--invert")
    assert out == [f"{inverted}  {expected[1]}"]
    code, out, _ = convgrad(capsys, "predict", folder, large, floats)
    assert code == 0 and len(out) == 2 and out[1] == f"{floats}  {expected[0]}"
    assert out[0].split()[1] == expected[2].split()[0]  # rounded to 8 bits: the class agrees
    Image.fromarray(pixels).resize((80, 80)).save(large)
    code, out, _ = convgrad(capsys, "predict", folder, large)
    assert code == 0 and 0 <= float(out[0].split()[2]) <= 1


@pytest.mark.parametrize("model", ["softmax", "mlp", "cnn"])
def test_the_same_seed_gives_the_same_weights_for_any_threads(model, capsys, tmp_path):
    weights = []
    for name, seed, threads in (("a", 0, 1), ("b", 0, 2), ("c", 1, 2)):
        options = ["--epochs", 1, "--batch-size", 128, "--seed", seed, "--threads", threads]
        code, _, err = convgrad(
            capsys, "train", "digits", "--model", model, *options, "--out", tmp_path / name
        )
        assert code == 0, err
        weights.append((tmp_path / name / "model.safetensors").read_bytes())
    assert weights[0] == weights[1] != weights[2]


@pytest.mark.parametrize(
    "options",
    [
        ["--optimizer", "adam", "--lr", "0.002"],
        ["--optimizer", "adamw", "--l1", "1e-5"],
        ["--l2", "0.001", "--momentum", "0"],
    ],
)
def test_options_reach_training(options, capsys, tmp_path):
    small = ["--model", "mlp", "--epochs", "3", "--out", tmp_path]
    code, out, err = convgrad(capsys, "train", "digits", *small, *options)
    assert code == 0, err
    assert float(out[-1].split()[-1]) > 0.8
    config = json.loads((tmp_path / "config.json").read_text())
    for name, value in zip(options[::2], options[1::2]):
        assert str(config[name[2:]]) == str(type(config[name[2:]])(value))


def test_mnist_from_files(capsys, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    write_mnist(data, train=120, test=40, compress=True)
    run = tmp_path / "run"
    code, out, err = convgrad(
        capsys,
        "train",
        "mnist",
        "--data",
        data,
        "--model",
        "softmax",
        "--epochs",
        20,
        "--batch-size",
        10,
        "--out",
        run,
    )
    assert code == 0, err
    assert out[0].startswith("mnist: 110 training and 10 validation images; softmax with 7850 ")
    assert float(out[-1].split()[-1]) > 0.9
    code, evaluated, _ = convgrad(capsys, "evaluate", run)
    assert code == 0 and evaluated[-1] == out[-1]
    elsewhere = tmp_path / "elsewhere"
    data.rename(elsewhere)
    code, _, err = convgrad(capsys, "evaluate", run)
    assert code == 1 and "does not exist" in err
    code, evaluated, _ = convgrad(capsys, "evaluate", run, "--data", elsewhere)
    assert code == 0 and evaluated[-1] == out[-1]


def test_mnist_cnn_trains(capsys, tmp_path):
    write_mnist(tmp_path, train=24, test=10)
    code, out, err = convgrad(
        capsys,
        "train",
        "mnist",
        "--data",
        tmp_path,
        "--epochs",
        1,
        "--batch-size",
        11,
        "--out",
        tmp_path / "run",
    )
    assert code == 0, err
    assert out[-1].startswith("test accuracy ")


# ---- info, parity, help ----


@pytest.mark.quick
def test_info_says_what_runs(capsys):
    code, out, _ = convgrad(capsys, "info")
    rows = dict(line.split("  ", 1) for line in out)
    rows = {name.strip(): value.strip() for name, value in rows.items()}
    assert code == 0 and rows["convgrad"] == cg.__version__ and rows["numpy"] == np.__version__
    assert rows["instruction set"].startswith(cg._cpu.isa_name())
    assert rows["threads"].startswith(str(cg.get_num_threads()))
    assert rows["gpu"] == cg.backend.cuda_status()


def test_parity_with_pytorch(capsys, torch):
    code, out, _ = convgrad(capsys, "parity")
    assert code == 0, out
    count = len(out) - 2
    assert out[-1] == f"{count} of {count} agree" and count >= 10


def test_parity_fails_when_results_differ(capsys, torch, monkeypatch):
    from convgrad.cli import parity

    monkeypatch.setattr(parity, "CASES", parity.CASES[:1])
    monkeypatch.setattr(parity, "TOLERANCE", 0.0)
    code, out, _ = convgrad(capsys, "parity")
    assert code == 1 and "FAILED" in out[1]
    assert parity.error(np.ones(3), np.ones(4)) == float("inf")
    assert parity.error(np.array([np.nan]), np.ones(1)) == float("inf")


@pytest.mark.quick
@pytest.mark.parametrize(
    "command",
    [[], ["train"], ["train", "digits"], ["train", "mnist"], ["train", "tissue"],
      ["train", "cade"], ["train", "tumour"], ["train", "filters"], ["evaluate"], ["predict"],
      ["info"], ["parity"]],
)  # fmt: skip
def test_help_everywhere(capsys, command):
    code, out, err = convgrad(capsys, *command, "--help")
    assert code == 0 and not err
    assert out[0].startswith(" ".join(["usage: convgrad", *command]))


def test_help_loads_no_large_package():
    code = (
        "import sys\n"
        "from convgrad.cli.main import main\n"
        "try:\n"
        "    main(['--help'])\n"
        "except SystemExit:\n"
        "    pass\n"
        "print({'sklearn', 'matplotlib', 'scipy', 'tqdm', 'torch', 'safetensors', 'PIL'}"
        " & set(sys.modules))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines()[-1] == "set()"


# ---- when things go wrong ----


@pytest.mark.quick
@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "required: COMMAND"),
        (["trian"], "invalid choice: 'trian'"),
        (["train"], "required: TASK"),
        (["train", "cifar"], "invalid choice: 'cifar'"),
        (["train", "mnist"], "required: --data"),
        (["train", "digits", "--model", "resnet"], "invalid choice: 'resnet'"),
        (["train", "digits", "--epochs", "0"], "--epochs: must be a whole number above 0, got '0'"),
        (["train", "digits", "--epochs", "2.5"], "got '2.5'"),
        (["train", "digits", "--lr", "nan"], "--lr: must be a number above 0, got 'nan'"),
        (["train", "digits", "--lr", "-1"], "got '-1'"),
        (["train", "digits", "--l2", "inf"], "--l2: must be a number of 0 or more, got 'inf'"),
        (["train", "digits", "--momentum", "1"], "--momentum: must be below 1, got 1.0"),
        (["train", "digits", "--optimizer", "adam", "--momentum", "0.5"], "is of sgd, not of adam"),
        (["train", "digits", "--threads", "many"], "got 'many'"),
        (["train", "digits", "--seed", "-3"], "got '-3'"),
        (["train", "digits", "--frobnicate"], "unrecognized arguments: --frobnicate"),
        (["predict", "somewhere"], "required: FILE"),
    ],
)
def test_wrong_usage_is_exit_code_2(capsys, args, message):
    code, _, err = convgrad(capsys, *args)
    assert code == 2 and message in err and "Traceback" not in err


def test_failures_are_exit_code_1_and_one_line(digits_run, capsys, tmp_path):
    folder, _ = digits_run
    write_mnist(tmp_path)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03\0\0")
    np.save(tmp_path / "large.npy", np.full((8, 8), 16.0))
    np.save(tmp_path / "cube.npy", np.zeros((8, 8, 8)))
    np.save(tmp_path / "whole.npy", np.zeros((8, 8), int))
    np.save(tmp_path / "object.npy", np.array([None]), allow_pickle=True)
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "file").write_text("")
    train, predict = ["train", "digits", "--epochs", "1"], ["predict", folder]
    for args, message in (
        ([*train, "--out", folder], "already holds a run"),
        ([*train, "--out", tmp_path / "file"], "Got the file"),
        ([*train, "--device", "cuda"], "[device] 'cuda' is not available"),
        ([*train, "--device", "tpu"], "Got 'tpu'"),
        ([*train, "--lr", "1e30", "--model", "mlp", "--out", tmp_path / "nan"], "stay finite"),
        (["train", "mnist", "--data", tmp_path], "train-images-idx3-ubyte"),
        (["train", "mnist", "--data", tmp_path / "none"], "does not exist; looked for"),
        (["evaluate", tmp_path], "is not a finished run: it has no config.json"),
        ([*predict, tmp_path / "none.png"], "none.png"),
        ([*predict, tmp_path / "text.png"], "is not an image"),
        ([*predict, tmp_path / "large.npy"], "must be in [0, 1]. Got 16 to 16"),
        ([*predict, tmp_path / "cube.npy"], "one grey image (H, W). Got (8, 8, 8)"),
        ([*predict, tmp_path / "whole.npy"], "uint8 or floats. Got int64"),
        ([*predict, tmp_path / "object.npy"], "is not a .npy file of numbers"),
    ):
        code, _, err = convgrad(capsys, *args)
        assert code == 1, (args, err)
        assert message in err and err.startswith("convgrad: ") and err.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("config.json", lambda d: d[:20], "config.json' is damaged"),
        ("config.json", lambda d: d.replace(b'"cnn"', b'"gru"'), "Got 'gru'"),
        (
            "config.json",
            lambda d: d.replace(b'"cnn"', b'"mlp"'),
            "does not hold this run's weights",
        ),
        ("model.safetensors", lambda d: d[:-10], "cannot be read"),
    ],
)
def test_damaged_runs_say_what_is_wrong(digits_run, capsys, tmp_path, name, change, message):
    folder, _ = digits_run
    for file in ("config.json", "model.safetensors"):
        data = (folder / file).read_bytes()
        (tmp_path / file).write_bytes(change(data) if file == name else data)
    code, _, err = convgrad(capsys, "evaluate", tmp_path)
    assert code == 1 and message in err and "Traceback" not in err


@pytest.mark.parametrize("package", ["sklearn", "tqdm", "safetensors", "matplotlib"])
def test_a_missing_package_names_its_extra(capsys, tmp_path, monkeypatch, package):
    for name in [m for m in sys.modules if m.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)  # import raises ModuleNotFoundError
    code, _, err = convgrad(
        capsys, "train", "digits", "--model", "softmax", "--epochs", 1, "--out", tmp_path / "run"
    )
    assert code == 1
    assert f"'{package}', which is not installed" in err and "'convgrad[demo]'" in err
    assert not (tmp_path / "run").exists()  # said before the work, not after it


def test_control_c_is_exit_code_130(tmp_path, interruptible):
    process = subprocess.Popen(
        [sys.executable, "-m", "convgrad", "train", "digits", "--epochs", "5000", "--out",
         str(tmp_path / "run")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline().startswith("digits: ")
    assert process.stdout.readline().startswith("epoch ")
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    try:
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130 and err == "convgrad: interrupted\n"
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert rows and all(json.loads(row)["epoch"] for row in rows)
