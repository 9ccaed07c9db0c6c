"""The types that a user has of the installed package, to mypy and to pyright, both strict.

``client_*.py`` are programs of users, whose results are said by ``assert_type``; ``misuse.py`` has
what must be an error.  The programs are run as well: what they say must be true.
The examples are checked too, and how much of the public API has types.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import venv
from pathlib import Path

import pytest

MISSING = [
    package
    for package in ("mypy", "basedpyright", "torch", "jax", "keras")
    if importlib.util.find_spec(package) is None
]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"{MISSING} not installed")

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CLIENTS = sorted(HERE.glob("client_*.py"))
MISUSE = HERE / "misuse.py"

OF_ANOTHER_PACKAGE = ("SGD", "AdamW", "Penalised")
"""The optimizers of torch, whose base has parameters that torch has not annotated."""

# What the libraries that examples draw with have not annotated.
NOT_OURS = {
    "reportMissingTypeStubs": False,
    "reportUnknownMemberType": False,
    "reportUnknownVariableType": False,
    "reportUnknownArgumentType": False,
    "reportUnknownLambdaType": False,
}


RUN = """
import runpy, sys, types, typing, typing_extensions


def is_of(value, kind):
    origin = typing.get_origin(kind) or kind
    if kind is typing.Any or kind is None:
        return kind is typing.Any or value is None
    if origin in (typing.Union, types.UnionType):
        return any(is_of(value, one) for one in typing.get_args(kind))
    if not isinstance(value, origin):
        return False
    if origin is dict:
        return all(is_of(one, typing.get_args(kind)[1]) for one in value.values())
    if origin is tuple:
        return all(map(is_of, value, typing.get_args(kind)))
    return True


def assert_type(value, kind):
    global count
    count += 1
    assert is_of(value, kind), f"{value!r} is no {kind}"
    return value


count = 0
typing_extensions.assert_type = assert_type
runpy.run_path(sys.argv[1])
print(count)
"""


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the Python of an environment where the package is installed, as pip would."""
    folder = tmp_path_factory.mktemp("types")
    venv.create(folder / "venv", with_pip=False)
    (site,) = (folder / "venv").glob("lib/python*/site-packages")
    others = [str(ROOT), *(folder for folder in sys.path if folder.endswith("-packages"))]
    (site / "others.pth").write_text("\n".join(others))
    return folder / "venv/bin/python"


def pyright(user: Path, *arguments: str) -> dict[str, object]:
    command = [sys.executable, "-m", "basedpyright", "--pythonpath", str(user), "--outputjson"]
    done = subprocess.run(
        [*command, *arguments],
        cwd=user.parent,
        env={**os.environ, "PYTHONPATH": str(ROOT)},  # it verifies no package that a .pth names
        capture_output=True,
        text=True,
        check=False,
    )
    found: dict[str, object] = json.loads(done.stdout)
    return found


def by_pyright(user: Path, files: list[Path], settings: dict[str, object]) -> list[str]:
    project = user.parent / "pyrightconfig.json"
    include = [str(file) for file in files]
    project.write_text(json.dumps({"include": include, "typeCheckingMode": "strict", **settings}))
    found = pyright(user, "--project", str(project))
    assert found["summary"]["filesAnalyzed"] == len(files)
    return [
        f"{Path(one['file']).name}:{one['range']['start']['line'] + 1}: {one['message']}"
        for one in found["generalDiagnostics"]
        if one["severity"] == "error"
    ]


def by_mypy(user: Path, files: list[Path]) -> list[str]:
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--no-error-summary"]
    cache = user.parents[2] / "mypy"
    done = subprocess.run(
        [*command, f"--python-executable={user}", f"--cache-dir={cache}", *map(str, files)],
        cwd=user.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr
    assert not done.stderr
    lines = [line for line in done.stdout.splitlines() if ": error:" in line]
    return [f"{Path(line.split(':')[0]).name}:{line.partition(':')[2]}" for line in lines]


def test_clients_have_types_to_pyright(user: Path) -> None:
    assert by_pyright(user, CLIENTS, {}) == []


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.stem)
def test_what_clients_say_is_true(client: Path) -> None:
    environment = {**os.environ, "KERAS_BACKEND": "torch", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "error", "-c", RUN, str(client)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == client.read_text(encoding="utf-8").count("assert_type(")


def marked() -> set[int]:
    lines = MISUSE.read_text(encoding="utf-8").splitlines()
    return {number for number, line in enumerate(lines, 1) if line.endswith("  # error")}


def lines_of(errors: list[str]) -> set[int]:
    return {int(re.match(r"misuse\.py:(\d+)", error)[1]) for error in errors}


def test_misuse_is_an_error_to_pyright(user: Path) -> None:
    assert lines_of(by_pyright(user, [MISUSE], NOT_OURS)) == marked()


def test_clients_and_misuse_to_mypy(user: Path) -> None:
    errors = by_mypy(user, [*CLIENTS, MISUSE])
    misuse = [error for error in errors if error.startswith("misuse.py")]
    assert [error for error in errors if error not in misuse] == []
    assert lines_of(misuse) == marked()


def test_examples_are_strict(user: Path) -> None:
    assert by_pyright(user, sorted((ROOT / "examples").glob("*.py")), NOT_OURS) == []


def test_public_names_have_types(user: Path) -> None:
    found = pyright(user, "--verifytypes", "fastreg", "--ignoreexternal")["typeCompleteness"]
    names = [symbol for symbol in found["symbols"] if symbol["isExported"]]
    # The benchmark is a command, and no interface for programs.
    names = [symbol for symbol in names if not symbol["name"].startswith("fastreg.bench")]
    assert len(names) > 100
    unknown = [
        symbol["name"] + "".join(f"\n  {one['message']}" for one in symbol["diagnostics"])
        for symbol in names
        if not symbol["isTypeKnown"]
        and not (
            symbol["name"].startswith("fastreg.torch.")
            and symbol["name"].rpartition(".")[2] in OF_ANOTHER_PACKAGE
        )
    ]
    assert not unknown, "\n".join(unknown)
