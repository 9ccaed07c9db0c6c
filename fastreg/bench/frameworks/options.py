"""The options of ``python -m fastreg bench frameworks``, and the check that they can be met.

Contract: importing this file imports no framework and not Rich, as that of ``bench.options``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import fastreg
from fastreg.bench import options
from fastreg.bench.frameworks.known import FRAMEWORKS
from fastreg.bench.frameworks.sizes import SIZES
from fastreg.bench.options import REPEATS, UsageError

EPILOG = (
    "Each framework runs in a process of its own, on the threads that it chooses itself. All ways "
    "to do the work of a row take turns, and leave the same behind before they are timed. What is "
    "not installed is named and left out."
)


def add_to(parser: argparse.ArgumentParser) -> None:
    """Add the options to a parser."""
    parser.add_argument(
        "--frameworks",
        type=options.names(FRAMEWORKS),
        metavar="A,B",
        help=f"some of {','.join(FRAMEWORKS)} (default: those installed)",
    )
    parser.add_argument(
        "--sizes",
        choices=SIZES,
        default="full",
        help="quick: no large arrays, nothing that has to be compiled by a C++ compiler; tiny: to "
        "see whether it runs (default: full)",
    )
    parser.add_argument(
        "--repeats",
        type=options.positive,
        default=REPEATS,
        help=f"turns of each measurement (default: {REPEATS})",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything as JSON")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write one line per variant")


def check(choices: argparse.Namespace) -> None:
    """Refuse to start what would fail later.

    Raises
    ------
    UsageError
        Rich is missing, or all frameworks, or one that was asked for, or the backend; a file cannot
        be written.
    """
    try:
        fastreg.get_num_threads()
    except RuntimeError as error:  # FASTREG_BACKEND=native without a core
        raise UsageError(str(error)) from error
    options.require({"rich": "the table"})
    missing = {name: FRAMEWORKS[name].missing() for name in choices.frameworks or FRAMEWORKS}
    if choices.frameworks is None and all(missing.values()):
        ways = [f"{name}: {options.remedy(modules)}" for name, modules in missing.items()]
        raise UsageError(
            "no framework is installed, so there is nothing to measure. " + "; ".join(ways)
        )
    for name in choices.frameworks or ():
        if missing[name]:
            raise UsageError(
                f"--frameworks has {name}, but not installed: {', '.join(missing[name])}. Install "
                f"what is missing: {options.remedy(missing[name])}"
            )
    options.check_files(choices, "json", "csv")
