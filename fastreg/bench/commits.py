"""Two commits of a checkout, built in worktrees and measured by two processes that take turns.

Contract: everything that is made lies in one temporary directory, and goes again with the worktrees
that git knows of, whatever happens. The checkout itself is not touched.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from fastreg.bench.cases import Case, cases
from fastreg.bench.compare import Comparison
from fastreg.bench.measure import interleave
from fastreg.bench.options import UsageError
from fastreg.bench.screen import note, progress_bar
from fastreg.bench.turns import Process


def compare(choices: argparse.Namespace) -> tuple[list[Comparison], list[str]]:
    """Build and measure the commits ``choices.before`` and ``choices.after``.

    Raises
    ------
    UsageError
        This is no checkout of fastreg, a commit is unknown, or one does not build.
    """
    root = checkout()
    names = (choices.before, choices.after)
    hashes = [resolve(root, name) for name in names]
    chosen = cases(choices.sizes, choices.models, choices.dtypes, choices.terms, choices.outputs)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="fastreg-compare-")))
        processes = []
        for side, name, commit in zip("AB", names, hashes, strict=True):
            worktree = stack.enter_context(_worktree(root, folder / f"{side}-source", commit))
            note(f"building {side}: {name} ({commit[:12]})")
            package = folder / side
            build_with_pip(worktree, package)
            processes.append(stack.enter_context(Process(package, choices.threads)))
        found = _measure(processes, chosen, choices.repeats)
    return found, [f"{side}: {commit}" for side, commit in zip("AB", hashes, strict=True)]


def checkout() -> Path:
    """Return the root of the checkout of fastreg around the current directory."""
    if shutil.which("git") is None:
        raise UsageError("comparing commits needs git, which is not installed")
    done = _git(Path(), "rev-parse", "--show-toplevel")
    root = Path(done.stdout.strip())
    if done.returncode != 0 or not (root / "fastreg" / "__init__.py").is_file():
        raise UsageError(
            f"{Path.cwd()} is in no checkout of fastreg, and A and B are no records (.json); "
            "commits can be compared in a clone of the repository only"
        )
    return root


def resolve(root: Path, name: str) -> str:
    """Return the hash of a commit."""
    done = _git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
    if done.returncode != 0:
        raise UsageError(f"{name!r} is neither a record (.json) nor a commit of {root}")
    return done.stdout.strip()


def build_with_pip(source: Path, target: Path) -> None:
    """Install what lies in ``source`` into the directory ``target``, for the host alone."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    command += ["--disable-pip-version-check", "--target", str(target), str(source)]
    command += ["-Ccmake.define.FASTREG_BUILD_TESTS=OFF", "-Ccmake.define.FASTREG_CUDA=OFF"]
    if find_spec("scikit_build_core") and find_spec("pybind11"):
        command.append("--no-build-isolation")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = "\n".join((done.stdout + done.stderr).strip().splitlines()[-20:])
        raise UsageError(f"{source.name} does not build:\n{last}")


@contextmanager
def _worktree(root: Path, path: Path, commit: str) -> Iterator[Path]:
    done = _git(root, "worktree", "add", "--detach", "--quiet", str(path), commit)
    if done.returncode != 0:
        raise UsageError(f"git made no worktree of {commit}: {done.stderr.strip()}")
    try:
        yield path
    finally:
        _git(root, "worktree", "remove", "--force", str(path))


def _git(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["git", *arguments], cwd=root, capture_output=True, text=True, check=False
    )


def _measure(
    processes: Sequence[Process], chosen: Sequence[Case], repeats: int
) -> list[Comparison]:
    found = []
    calls = {side: process.time for side, process in zip("AB", processes, strict=True)}
    with progress_bar() as progress:
        task = progress.add_task("starting", total=len(chosen))
        for case in chosen:
            progress.update(task, description=f"{case!s:40}")
            fingerprints = [process.prepare(case) for process in processes]
            samples = interleave(calls, repeats, timer=lambda side, _: calls[side]())
            same_bits = fingerprints[0] == fingerprints[1]
            found.append(Comparison.in_turn(case, samples["A"], samples["B"], same_bits))
            progress.advance(task)
    return found
