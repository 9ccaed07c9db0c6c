"""The options of ``python -m fastreg bench``, and the check that what they need is installed.

Contract: importing this file needs neither Rich nor Matplotlib nor ml_dtypes, so that ``--help``
works without them; ``check`` refuses a run that would fail later for want of one.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Iterable
from importlib.util import find_spec
from pathlib import Path

import fastreg
from fastreg.bench.cases import DTYPES, OUTPUTS, TERMS
from fastreg.bench.peers import PEERS

SIZES = (64, 1_000, 65_536, 1_048_576, 16_777_216)
QUICK_SIZES = (64, 65_536, 1_048_576)
REPEATS = 31
QUICK_REPEATS = 7

EPILOG = (
    "Lists are separated by commas. The floor is a bare loop over the same bytes: a read for "
    "value, a copy for gradient and value+gradient, an addition for add and value+add; it runs in "
    "turn with fastreg, on the same threads. numpy-dot is NumPy with the squares summed by BLAS."
)


class UsageError(Exception):
    """An option that cannot be met here; the message says what would do."""


def add_to(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``bench`` to a parser."""
    parser.add_argument(
        "--sizes", type=_sizes, metavar="N,N", help=f"elements (default: {_joined(SIZES)})"
    )
    for name, known in (("dtypes", DTYPES), ("terms", TERMS), ("outputs", OUTPUTS)):
        parser.add_argument(
            f"--{name}",
            type=_names(known),
            metavar="A,B",
            help=f"some of {_joined(known)} (default: all)",
        )
    parser.add_argument(
        "--peers",
        type=_names(PEERS),
        default=list(PEERS),
        metavar="A,B",
        help=f"whom to compare with (default: {_joined(PEERS)})",
    )
    parser.add_argument(
        "--repeats",
        type=_positive,
        help=f"turns of each measurement (default: {REPEATS})",
    )
    parser.add_argument("--threads", type=_positive, help="threads of fastreg and of the floor")
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"sizes {_joined(QUICK_SIZES)} and {QUICK_REPEATS} turns unless given",
    )
    parser.add_argument(
        "--no-step",
        dest="step",
        action="store_false",
        help="leave out the penalties' share of a training step",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results as JSON")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw them (.png, .svg, .pdf)")


def complete(options: argparse.Namespace) -> None:
    """Fill in what was not given, ``--quick`` considered."""
    options.sizes = options.sizes or list(QUICK_SIZES if options.quick else SIZES)
    options.repeats = options.repeats or (QUICK_REPEATS if options.quick else REPEATS)
    options.dtypes = options.dtypes or list(DTYPES)
    options.terms = options.terms or list(TERMS)
    options.outputs = options.outputs or list(OUTPUTS)


def check(options: argparse.Namespace) -> None:
    """Refuse to start what would fail later.

    Raises
    ------
    UsageError
        A package of the extra ``bench`` is missing, or the backend asked for, or a directory for
        the results.
    """
    try:
        fastreg.get_num_threads()
    except RuntimeError as error:  # FASTREG_BACKEND=native without a core
        raise UsageError(str(error)) from error
    needed = {"rich": "the table and the progress bar"}
    if options.dtypes is None or "bf16" in options.dtypes:
        needed["ml_dtypes"] = "the dtype bf16"
    if options.plot is not None:
        needed["matplotlib"] = "--plot"
    missing = [f"{name} (for {use})" for name, use in needed.items() if find_spec(name) is None]
    if missing:
        raise UsageError(
            f"not installed: {', '.join(missing)}. "
            "Install the extra: python -m pip install 'fastreg-kernels[bench]'"
        )
    for option in ("json", "plot"):
        path: Path | None = getattr(options, option)
        if path is not None and not path.absolute().parent.is_dir():
            raise UsageError(f"--{option} was {path}; its directory does not exist")


def _joined(names: Iterable[object]) -> str:
    return ",".join(str(name) for name in names)


def _sizes(text: str) -> list[int]:
    """Sizes in elements: ``1000``, ``1_000`` or ``1e3``."""
    sizes = []
    for part in text.split(","):
        try:
            size = float(part)
        except ValueError:
            size = 0.0
        if not (size >= 1 and size.is_integer()):
            raise argparse.ArgumentTypeError(f"{part!r} is not a whole number of 1 or more")
        sizes.append(int(size))
    return sizes


def _positive(text: str) -> int:
    sizes = _sizes(text)
    if len(sizes) != 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not one number")
    return sizes[0]


def _names(known: Collection[str]) -> Callable[[str], list[str]]:
    """A parser of comma-separated names, in the order given, each of them known."""

    def parse(text: str) -> list[str]:
        names = text.split(",")
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is not one of {_joined(known)}")
        return names

    return parse
