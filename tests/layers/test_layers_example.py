"""The example with convolutions runs as a user runs it, and the benchmark's row of a step."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
DIGITS = ROOT / "examples" / "digits_conv.py"


def run(*arguments):
    for package in ("sklearn", "threadpoolctl", "autograd"):
        pytest.importorskip(package)
    # Where the package is not installed it is found as these tests found it.
    path = os.pathsep.join([*filter(None, sys.path), str(ROOT)])
    return subprocess.run(
        [sys.executable, "-W", "error", str(DIGITS), *arguments],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def test_digits_conv_trains_and_saves(tmp_path):
    done = run("--epochs", "2", "--save", str(tmp_path / "digits.json"))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    epochs = [line.split() for line in done.stdout.splitlines() if re.match(r" +\d+ ", line)]
    assert [line[0] for line in epochs] == ["1", "2", "1", "2"]
    assert max(map(len, done.stdout.replace(str(tmp_path), "").splitlines())) <= 80
    assert float(epochs[0][1]) > float(epochs[1][1]) > 0
    assert float(epochs[0][2]) > float(epochs[1][2]) > 0
    assert [line[2] for line in epochs[2:]] == ["0.0000"] * 2
    assert float(epochs[1][3].rstrip("%")) > 85
    assert json.loads((tmp_path / "digits.json").read_text())["config"]["name"] == "digits"


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras' own
def test_the_page_in_docs_runs(keras):
    pytest.importorskip("autograd")
    rng = np.random.default_rng(0)
    batches = [(rng.random((8, 64)), np.eye(10)[rng.integers(0, 10, 8)]) for _ in range(3)]
    keras_layer = keras.layers.Dense(3)
    keras_layer.build((None, 64))
    names = {"batches": batches, "keras": keras, "keras_layer": keras_layer}
    page = (ROOT / "docs" / "layers.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 6
    for block in blocks:
        exec(block, names)
    assert names["loss"] > names["model"].penalty > 0


def test_the_loop_in_docs_survives_a_saturated_softmax():
    rng = np.random.default_rng(0)
    batches = [(1e3 * rng.random((8, 64)), np.eye(10)[rng.integers(0, 10, 8)]) for _ in range(3)]
    page = (ROOT / "docs" / "layers.md").read_text(encoding="utf-8")
    names = {"batches": batches}
    with np.errstate(all="raise", under="ignore"):
        exec(re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0], names)
    assert np.isfinite(names["loss"])
    assert all(np.isfinite(weight).all() for weight in names["model"].weights.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "--epochs was 0; it must be 1 or more"),
        (["--seed", "-1"], "--seed was -1; it must be 0 or more"),
        (["--save", "digits.npz"], "--save was digits.npz; it must end in .json"),
    ],
)
def test_digits_conv_refuses(arguments, message):
    done = run(*arguments)
    assert done.returncode == 2
    assert message in done.stderr


def test_the_variants_of_a_step_train_alike():
    """By hand and through the layers: the same penalties, and nearly the same weights."""
    from fastreg.bench import step

    fused, by_hand, bare = step._Network(True), step._ByHand(), step._Network(False)
    for _ in range(3):
        assert fused.step() == pytest.approx(by_hand.step(), rel=1e-4)
        assert bare.step() == 0.0
    for one, other, third in zip(fused.layers, by_hand.layers, bare.layers, strict=True):
        np.testing.assert_allclose(one.kernel, other.kernel, rtol=1e-4, atol=1e-6)
        assert abs(one.kernel - third.kernel).max() > 1e-6


def test_the_row_of_a_step(tmp_path, capsys):
    pytest.importorskip("rich")
    from fastreg.__main__ import main

    arguments = ["bench", "--sizes", "64", "--dtypes", "f32", "--terms", "L1", "--repeats", "2"]
    record = tmp_path / "bench.json"
    assert main([*arguments, "--json", str(record)]) == 0
    out = capsys.readouterr().out
    assert "training step: Dense 784-1024-1024-10" in out
    assert re.search(r"^fastreg +[\d.]+ .*penalties -?[\d.]+ \(.*\) % of it$", out, re.MULTILINE)
    row = json.loads(record.read_text())["training_step"]
    assert set(row["seconds"]) == {"no penalty", "fastreg", "by hand"}
    assert set(row["share"]) == {"fastreg", "by hand"}
    assert main([*arguments, "--no-step", "--json", str(record)]) == 0
    assert "training step" not in capsys.readouterr().out
    assert "training_step" not in json.loads(record.read_text())
