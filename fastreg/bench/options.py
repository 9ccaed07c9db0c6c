"""The options of ``python -m fastreg bench`` and its commands, and the check that they can be met.

Contract: importing this file needs neither Rich nor Matplotlib nor ml_dtypes nor any peer, so that
``--help`` works without them; ``check`` refuses a run that would fail later.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Collection, Iterable
from importlib.util import find_spec
from pathlib import Path

import fastreg
from fastreg._base import files
from fastreg._base.arguments import MOST_THREADS
from fastreg.bench import circumstances
from fastreg.bench.cases import BEFORE, DTYPES, MEMORIES, NEW_OUTPUTS, OUTPUTS, TERMS
from fastreg.bench.frameworks.known import FRAMEWORKS
from fastreg.bench.frameworks.sizes import SIZES as FRAMEWORK_SIZES
from fastreg.bench.headline import RECORDS_FOLDER, STAGES
from fastreg.bench.peers import PEERS, installed, policy_names
from fastreg.bench.shapes import MODELS, parameters

SIZES = (64, 1_000, 65_536, 1_048_576, 16_777_216)
QUICK_SIZES = (64, 65_536, 1_048_576)
QUICK_TERMS = ("L1L2",)
REPEATS = 31
QUICK_REPEATS = 7
MOST = sys.maxsize // 8  # elements of float64
PLOT_SUFFIXES = (".png", ".svg", ".pdf")
RECORDS = {"json": "write everything as JSON", "csv": "write one line per variant"}

DESCRIPTION = (
    "Time every case: one dtype, one penalty (terms), one kind of result (outputs), one size or "
    "model. Each is timed in turn with its floor, on the same threads, and with other libraries. "
    "The floor is the fastest of the bare loops over the same bytes (fastreg's, NumPy's, and "
    "torch's where torch takes part): a read for value, a copy for gradient and value+gradient, an "
    "addition for add and value+add, a copy into a new array for new gradients. Every result is "
    "held against float64 before it is timed."
)
EPILOG = (
    "Lists are separated by commas. `python -m fastreg bench COMMAND --help` tells the options of "
    "a command."
)
COMPARE_EPILOG = (
    "A and B are two records written by `bench --json`, or two commits of the checkout that this "
    "is run in: they are built in two temporary worktrees and measured by two processes that take "
    "turns, with the benchmark of this installation. `compare main HEAD` shows what a branch has "
    "changed, `compare HEAD HEAD` how much noise there is, `compare HEAD $(git stash create)` what "
    "is not committed yet. The options that choose cases are for commits only. About one case in "
    "twenty that did not change is marked by chance."
)
FRAMEWORKS_EPILOG = (
    "Each framework runs in a process of its own, on the threads that it chooses itself. All ways "
    "to do the work of a row take turns, and leave the same behind before they are timed. What is "
    "not installed is named and left out."
)
RECORD_EPILOG = (
    "Each stage is a run of `bench` or `bench frameworks` in a process of its own, and is kept as "
    "soon as it is done; the others of the file stay. Stages: "
    + "; ".join(f"{name}: {stage.summary}" for name, stage in STAGES.items())
    + ". All take about ten minutes. Then `bench page` writes the tables of the documents."
)
PAGE_EPILOG = (
    "In a page, what stands between `<!-- records: NAME -->` and `<!-- end of records -->` is "
    "replaced by the table of that name."
)


class UsageError(Exception):
    """An option that cannot be met here; the message says what would do."""


def add_to(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``bench`` to a parser."""
    add_cases(parser)
    parser.add_argument(
        "--peers",
        type=lambda text: [] if text == "none" else names(PEERS)(text),
        metavar="A,B",
        help="whom to compare with, or none (default: those installed); "
        + "; ".join(f"{name}: {peer.summary}" for name, peer in PEERS.items()),
    )
    parser.add_argument(
        "--no-step",
        dest="step",
        action="store_false",
        help="leave out the penalties' share of a training step",
    )
    parser.add_argument(
        "--memory",
        type=names(MEMORIES),
        metavar="A,B",
        help="whose memory: aligned: NumPy's from a cache line on, a model in one piece; numpy, "
        "torch: as their allocators give it, tensors one by one; small-pages: numpy's without "
        "large pages (default: aligned)",
    )
    parser.add_argument(
        "--before",
        dest="runs_before",  # `compare` has a before of its own
        type=names(BEFORE),
        metavar="A,B",
        help="what runs before each timed call: nothing, or a parallel operation of torch, whose "
        "threads still spin then (default: nothing)",
    )
    parser.add_argument(
        "--policies",
        type=lambda text: policy_names() if text == "all" else names(policy_names())(text),
        metavar="A,B",
        help="fastreg under these policies as well, or under all that the core has (default: none)",
    )
    plot = f"draw times and shares of the floor ({', '.join(PLOT_SUFFIXES)})"
    _add_files(parser, **RECORDS, plot=plot)


def add_cases(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose cases and how they are measured."""
    parser.add_argument(
        "--sizes",
        type=sizes,
        metavar="N,N",
        help=f"elements of one tensor (default: {_joined(SIZES)}, or none with --models)",
    )
    counts = ", ".join(f"{name}: {parameters(name):,}" for name in MODELS)
    parser.add_argument(
        "--models",
        type=names(MODELS),
        metavar="A,B",
        help=f"whole models, all tensors in one call (parameters: {counts}); default: none",
    )
    for name, known in (("dtypes", DTYPES), ("terms", TERMS), ("outputs", OUTPUTS)):
        others = NEW_OUTPUTS if name == "outputs" else ()
        parser.add_argument(
            f"--{name}",
            type=names([*known, *others]),
            metavar="A,B",
            help=f"some of {_joined(known)} (default: all{' these' if others else ''})"
            + (f", or of {_joined(others)}" if others else ""),
        )
    parser.add_argument(
        "--repeats",
        type=positive,
        help=f"turns of each measurement (default: {REPEATS})",
    )
    parser.add_argument("--threads", type=_threads, help="threads of everyone")
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"unless given: sizes {_joined(QUICK_SIZES)}, terms {_joined(QUICK_TERMS)}, "
        f"{QUICK_REPEATS} turns, no peers that have to be compiled",
    )


def add_comparison(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``bench compare`` to a parser."""
    parser.add_argument("before", metavar="A", help="a record (.json) or a commit")
    parser.add_argument("after", metavar="B", help="another of the same kind")
    add_cases(parser)
    _add_files(parser, json="write the comparison as JSON")


def add_frameworks(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``bench frameworks`` to a parser."""
    parser.add_argument(
        "--frameworks",
        type=names(FRAMEWORKS),
        metavar="A,B",
        help=f"some of {','.join(FRAMEWORKS)} (default: those installed)",
    )
    parser.add_argument(
        "--sizes",
        choices=FRAMEWORK_SIZES,
        default="full",
        help="quick: no large arrays, nothing that has to be compiled by a C++ compiler; tiny: to "
        "see whether it runs (default: full)",
    )
    parser.add_argument(
        "--repeats",
        type=positive,
        default=REPEATS,
        help=f"turns of each measurement (default: {REPEATS})",
    )
    _add_files(parser, **RECORDS)


def add_record(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``bench record`` to a parser."""
    parser.add_argument(
        "--stages",
        type=names(STAGES),
        metavar="A,B",
        help="some of the stages below (default: all)",
    )
    parser.add_argument(
        "--repeats",
        type=positive,
        default=REPEATS,
        help=f"turns of each measurement (default: {REPEATS})",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="the record (default: in docs/records of the checkout, named after the processor)",
    )


def add_page(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``bench page`` to a parser."""
    parser.add_argument(
        "--check", action="store_true", help="change nothing; status 1 where a table is not theirs"
    )


def _add_files(parser: argparse.ArgumentParser, **files: str) -> None:
    for name, what in files.items():
        parser.add_argument(f"--{name}", type=Path, metavar="FILE", help=what)


def complete(options: argparse.Namespace) -> None:
    """Fill in what was not given, ``--quick`` considered."""
    quick = options.quick
    if options.sizes is None:
        options.sizes = [] if options.models else list(QUICK_SIZES if quick else SIZES)
    options.models = options.models or []
    options.repeats = options.repeats or (QUICK_REPEATS if quick else REPEATS)
    options.dtypes = options.dtypes or list(DTYPES)
    options.terms = options.terms or list(QUICK_TERMS if quick else TERMS)
    options.outputs = options.outputs or list(OUTPUTS)
    if "memory" in options:
        options.memory = options.memory or list(MEMORIES[:1])
        options.runs_before = options.runs_before or list(BEFORE[:1])
    if "peers" in options and options.peers is None:
        options.peers = installed(quick)


def check(options: argparse.Namespace) -> None:
    """Refuse by a UsageError what would fail later: what is missing, and files that cannot be."""
    plot: Path | None = options.plot
    needed = {} if plot is None else {"matplotlib": "--plot"}
    for name, chosen in (("memory", options.memory), ("before", options.runs_before)):
        if "torch" in (chosen or ()):
            needed["torch"] = f"--{name} torch"
    check_cases(options, needed)
    if plot is not None and plot.suffix.lower() not in PLOT_SUFFIXES:
        raise UsageError(f"--plot was {plot}; its suffix must be one of {_joined(PLOT_SUFFIXES)}")
    missing = [name for name in options.peers or () if not PEERS[name].available()]
    if missing:
        modules = dict.fromkeys(module for name in missing for module in PEERS[name].modules)
        raise UsageError(
            f"--peers has what is not installed: {', '.join(missing)}. "
            f"Install what is missing: {remedy(modules)}"
        )
    check_files(options, "json", "csv", "plot")


def check_comparison(choices: argparse.Namespace) -> None:
    """Refuse by a UsageError what would fail later: A and B of two kinds, options of another."""
    for option in ("peers", "memory", "runs_before", "policies", "csv", "plot"):
        if getattr(choices, option) is not None:
            raise UsageError(f"--{option.removeprefix('runs_')} is not for `compare`")
    check_files(choices, "json")
    require({"rich": "the table and the progress bar"})
    sides = (choices.before, choices.after)
    if not any(is_record(side) for side in sides):
        check_cases(choices, {})
        return
    for side in sides:
        if not is_record(side):
            raise UsageError(
                f"{side!r} is not a record (.json); compare two records, or two commits"
            )
        if not Path(side).is_file():
            raise UsageError(f"{side!r} is not there")
    given = [
        f"--{option}"
        for option in ("sizes", "models", "dtypes", "terms", "outputs", "repeats", "threads")
        if getattr(choices, option) is not None
    ]
    given += ["--quick"] if choices.quick else []
    if given:
        raise UsageError(f"{', '.join(given)}: only for commits; records are compared as they are")


def is_record(side: str) -> bool:
    """Return whether an argument means a file; a commit has no such name."""
    return side.endswith(".json") or Path(side).is_file()


def check_frameworks(choices: argparse.Namespace) -> None:
    """Refuse by a UsageError what would fail later: a framework that is missing, or all."""
    require_backend()
    require({"rich": "the table"})
    missing = {name: FRAMEWORKS[name].missing() for name in choices.frameworks or FRAMEWORKS}
    if choices.frameworks is None and all(missing.values()):
        ways = [f"{name}: {remedy(modules)}" for name, modules in missing.items()]
        raise UsageError(
            "no framework is installed, so there is nothing to measure. " + "; ".join(ways)
        )
    for name in choices.frameworks or ():
        if missing[name]:
            raise UsageError(
                f"--frameworks has {name}, but not installed: {', '.join(missing[name])}. Install "
                f"what is missing: {remedy(missing[name])}"
            )
    check_files(choices, "json", "csv")


def check_record(choices: argparse.Namespace) -> None:
    """Refuse by a UsageError what would fail later; missing peers are left out and named."""
    require_backend()
    require({"rich": "the progress bar", "ml_dtypes": "the dtype bf16"})
    if choices.out is None:
        choices.out = default_record()
    check_files(choices, "out")


def check_page(choices: argparse.Namespace) -> None:
    """Refuse by a UsageError to look for pages outside a checkout."""
    if not RECORDS_FOLDER.is_dir():
        raise UsageError(f"{RECORDS_FOLDER} is not there; the pages are in a checkout")


def default_record() -> Path:
    """Return the file of this processor: in the checkout, else in the current directory."""
    name = f"{circumstances.processor_name()}.json"
    return RECORDS_FOLDER / name if RECORDS_FOLDER.is_dir() else Path(name)


def check_cases(options: argparse.Namespace, needed: dict[str, str]) -> None:
    """Do the part of ``check`` for ``add_cases``; ``needed``: further package -> what for."""
    require_backend()
    needed = {"rich": "the table and the progress bar", **needed}
    if options.dtypes is None or "bf16" in options.dtypes:
        needed["ml_dtypes"] = "the dtype bf16"
    if options.models and (new := set(options.outputs or ()) & {*NEW_OUTPUTS}):
        raise UsageError(f"--outputs has {_joined(sorted(new))}: for --sizes, not for --models")
    require(needed)


def check_files(options: argparse.Namespace, *names: str) -> None:
    """Refuse files that cannot be written, and one file for two things."""
    given: dict[str, str] = {}
    for name in names:
        path: Path | None = getattr(options, name)
        if path is None:
            continue
        try:
            files.require_writable(path)
        except FileNotFoundError:
            raise UsageError(f"--{name} was {path}; its directory does not exist") from None
        except OSError as error:
            raise UsageError(f"--{name} was {path}, which cannot be written: {error}") from None
        if other := given.get(real := os.path.realpath(path)):
            raise UsageError(f"--{other} and --{name} are one file, {path}; name two")
        given[real] = name


def require_backend() -> None:
    """Refuse to go on where FASTREG_BACKEND asks for a core that is not there."""
    try:
        fastreg.get_num_threads()
    except RuntimeError as error:
        raise UsageError(str(error)) from error


def require(needed: dict[str, str]) -> None:
    """Refuse to go on without packages: name -> what it is for."""
    missing = {name: use for name, use in needed.items() if find_spec(name) is None}
    if missing:
        listed = ", ".join(f"{name} (for {use})" for name, use in missing.items())
        raise UsageError(f"not installed: {listed}. Install what is missing: {remedy(missing)}")


def remedy(modules: Iterable[str]) -> str:
    """Return the command that installs modules, whose packages have the same names."""
    return f"python -m pip install {' '.join(modules)}"


def _joined(names: Iterable[object]) -> str:
    return ",".join(str(name) for name in names)


def sizes(text: str) -> list[int]:
    """Parse sizes in elements: ``1000``, ``1_000`` or ``1e3``."""
    found = []
    for part in text.split(","):
        try:
            size = float(part)
        except ValueError:
            size = 0.0
        if not (size >= 1 and size.is_integer()):
            raise argparse.ArgumentTypeError(f"{part!r} is not a whole number of 1 or more")
        if size > MOST:
            raise argparse.ArgumentTypeError(f"{part!r} is more than an array can have, {MOST:,}")
        found.append(int(size))
    return found


def positive(text: str) -> int:
    """Parse a whole number of 1 or more."""
    numbers = sizes(text)
    if len(numbers) != 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not one number")
    return numbers[0]


def _threads(text: str) -> int:
    """Parse a number of threads that the core takes."""
    count = positive(text)
    if count > MOST_THREADS:
        raise argparse.ArgumentTypeError(f"{text!r} is more than {MOST_THREADS}")
    return count


def names(known: Collection[str]) -> Callable[[str], list[str]]:
    """Return a parser of comma-separated names, in the order given, each of them known."""

    def parse(text: str) -> list[str]:
        names = list(dict.fromkeys(text.split(",")))
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is not one of {_joined(known)}")
        return names

    return parse
