"""The examples run as a user runs them, and show what they promise."""

from __future__ import annotations

import math
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

for package in ("sklearn", "matplotlib", "rich"):
    pytest.importorskip(package)

EXAMPLES = Path(__file__).parents[1] / "examples"
DIGITS = EXAMPLES / "digits.py"
LARGE_NORMS = EXAMPLES / "large_norms.py"
SPARSE_DIGITS = EXAMPLES / "sparse_digits.py"


def run(*arguments: str, example: Path = DIGITS) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(example), *arguments], capture_output=True, text=True, check=False
    )


def test_digits_trains_agrees_and_draws(tmp_path: Path) -> None:
    picture = tmp_path / "digits.png"
    done = run("--epochs", "3", "--hidden", "64", "--output", str(picture))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""

    assert max(map(len, done.stdout.replace(str(picture), "").splitlines())) <= 80
    epochs = [line.split() for line in done.stdout.splitlines() if re.match(r" +\d+ ", line)]
    assert [line[0] for line in epochs] == ["1", "2", "3"]
    data_loss, hidden_kernel = ([float(line[column]) for line in epochs] for column in (1, 2))
    assert data_loss[0] > data_loss[-1] > 0
    assert hidden_kernel[0] > hidden_kernel[-1] > 0
    assert float(epochs[-1][6].rstrip("%")) > 80

    agreement = re.search(r"largest difference (\S+)", done.stdout)
    assert agreement is not None
    assert float(agreement[1]) < 1e-5
    for label in ("fastreg", "NumPy by hand"):
        assert re.search(rf"^{label} +[\d.]+ us +[\d.]+%", done.stdout, re.MULTILINE)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_digits_without_picture(tmp_path: Path) -> None:
    picture = tmp_path / "digits.png"
    done = run("--epochs", "1", "--hidden", "8", "--no-picture", "--output", str(picture))
    assert done.returncode == 0, done.stderr
    assert not picture.exists()


@pytest.mark.parametrize("option", ["--epochs", "--hidden"])
def test_digits_refuses_nothing_to_do(option: str) -> None:
    done = run(option, "0")
    assert done.returncode == 2
    assert f"{option} was 0; it must be 1 or more" in done.stderr


def test_digits_help() -> None:
    done = run("--help")
    assert done.returncode == 0
    assert "--no-picture" in done.stdout


def test_large_norms_show_who_is_right() -> None:
    done = run("--sizes", "1e5,1e6", example=LARGE_NORMS)
    assert done.returncode == 0, done.stderr
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in done.stdout.splitlines()]
    lines = [line for line in lines if len(line) == 5]
    starts = [number for number, line in enumerate(lines) if line[0]]
    assert [lines[n][0] for n in starts] == ["|w|, float32", "w**2, float32", "|w|, float16"]

    own = [line[3:] for line in lines if line[1] == "fastreg"]
    assert len(own) == 3
    assert all(abs(float(error)) < 1e-15 for errors in own for error in errors)
    half = [line for line in lines[starts[2] :] if line[1] != "fastreg"]
    assert half[0][1:] == ["numpy", "np.abs(w).sum()", "overflow", "overflow"]
    along = next(line for line in lines if "axis=0" in line[2])
    assert abs(float(along[4])) > 1e-7


@pytest.mark.parametrize(
    ("found", "text"),
    [(0.54, "-46 %"), (1 - 2e-7, "-2.0e-07"), (1.0, "0"), (math.inf, "overflow")],
)
def test_large_norms_print_errors(found: float, text: str) -> None:
    assert runpy.run_path(str(LARGE_NORMS))["error"](found, 1.0) == text


@pytest.mark.parametrize("sizes", ["15", "0", "1e6;1e7"])
def test_large_norms_refuse_sizes(sizes: str) -> None:
    done = run("--sizes", sizes, example=LARGE_NORMS)
    assert done.returncode == 2
    assert f"--sizes was {sizes}; it must be multiples of 10" in done.stderr


def test_inside_jit() -> None:
    pytest.importorskip("jax")
    done = run("--sizes", "1000", "--repeats", "1", example=EXAMPLES / "inside_jit.py")
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if "1,000" in line]
    steps = ("bare step", "gradient inside", "gradient and value inside", "value by fastreg")
    assert len(lines) == len(steps)
    assert all(step in line for step, line in zip(steps, lines, strict=True))
    assert "1.00 (1.00-1.00)" in lines[0]


def test_sparse_digits_reach_exact_zeros_at_the_same_accuracy(tmp_path: Path) -> None:
    picture = tmp_path / "sparse_digits.png"
    done = run("--epochs", "12", "--seeds", "1", "--output", str(picture), example=SPARSE_DIGITS)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert max(map(len, done.stdout.replace(str(picture), "").splitlines())) <= 80
    rows = {
        match[1].strip(): [float(number) for number in match.groups()[1:]]
        for match in re.finditer(
            r"^(\w+, [\w. ]+?) {2,}\S+ +([\d.]+)% \+-.*?% +([\d.]+)% +([\d.]+)%", done.stdout, re.M
        )
    }
    zeros = {label: row[1] for label, row in rows.items()}
    assert zeros["SGD, no penalty"] == zeros["SGD, gradient"] == zeros["AdamW, no penalty"] == 0
    assert zeros["SGD, proximal"] > 8
    assert zeros["SGD, prox. x 10"] > 75
    assert zeros["AdamW, scaled"] > 3
    assert zeros["AdamW, decoupled"] > 1
    plain = min(rows["SGD, no penalty"][0], rows["AdamW, no penalty"][0])
    assert min(row[0] for row in rows.values()) > plain - 2.5
    assert "the same answers on the test digits" in done.stdout
    sizes = re.findall(r"(\d+) kB \(", done.stdout)
    assert int(sizes[-1]) < int(sizes[-2]) / 3
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_sparse_digits_remove_dead_units_and_keep_the_function() -> None:
    example = runpy.run_path(str(SPARSE_DIGITS))
    rng = np.random.default_rng(0)
    params = example["initial_parameters"](rng)
    for layer in (1, 2):
        params[f"{layer}/bias"] += rng.normal(size=params[f"{layer}/bias"].shape).astype("f4")
    params["1/kernel"][:, :200] = 0  # constant units
    params["2/kernel"][220:, :] = 0  # units that are not heard
    params["3/kernel"][:40] = 0
    params["2/kernel"][200:220, :50] = 0  # constant once those before are gone
    smaller = example["without_dead_units"](params)
    assert [smaller[f"{layer}/kernel"].shape for layer in (1, 2, 3)] == [
        (64, 20),
        (20, 50),
        (50, 10),
    ]
    x = rng.normal(size=(8, 64)).astype("f4")
    before, after = (example["forward"](p, x)[-1] for p in (params, smaller))
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("option", "value", "bound"), [("--seeds", "0", "1 or more"), ("--sgd-l1", "-1", ">= 0")]
)
def test_sparse_digits_refuse_nothing_to_do(option: str, value: str, bound: str) -> None:
    done = run(option, value, example=SPARSE_DIGITS)
    assert done.returncode == 2
    assert f"{option} was" in done.stderr
    assert f"must be {bound}" in done.stderr


def test_one_weight_ends_at_zero_by_proximal_steps(tmp_path: Path) -> None:
    picture = tmp_path / "one_weight.png"
    done = run("--output", str(picture), example=EXAMPLES / "one_weight.py")
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if "L1" in line]
    assert len(lines) == 7
    at_zero = [" ".join(line.split("last")[0].split()) for line in lines if "exactly 0" in line]
    assert at_zero == [
        "SGD, momentum 0.9 proximal, L1 0.5",
        "AdamW proximal, L1 0.05",
        "AdamW decoupled, L1 1.5",
    ]
    assert picture.read_bytes().startswith(b"\x89PNG")
