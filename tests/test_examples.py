"""The examples run as a user runs them, and show what they promise."""

from __future__ import annotations

import math
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

for package in ("sklearn", "matplotlib", "rich"):
    pytest.importorskip(package)

EXAMPLES = Path(__file__).parents[1] / "examples"
DIGITS = EXAMPLES / "digits.py"
LARGE_NORMS = EXAMPLES / "large_norms.py"


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
