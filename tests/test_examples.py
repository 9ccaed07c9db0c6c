"""The examples run as a user runs them, and show what they promise."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

for package in ("sklearn", "matplotlib", "rich"):
    pytest.importorskip(package)

DIGITS = Path(__file__).parents[1] / "examples" / "digits.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(DIGITS), *arguments], capture_output=True, text=True, check=False
    )


def test_digits_trains_agrees_and_draws(tmp_path: Path) -> None:
    picture = tmp_path / "digits.png"
    done = run("--epochs", "3", "--hidden", "64", "--output", str(picture))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""

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
