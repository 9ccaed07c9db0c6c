"""``python -m fastreg``: facts about the installation, and the benchmark.

Contract: results go to standard output, progress and errors to standard error; the exit status is
0 on success, 1 where something could not be measured or written, 2 on a wrong option or environment
variable or a missing package, 130 when interrupted. Only the command that runs is imported.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import fastreg
from fastreg import _info
from fastreg.bench import options as bench_options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; ``arguments`` are those after the program's name.

    >>> import contextlib, io, json
    >>> with contextlib.redirect_stdout(io.StringIO()) as text:
    ...     status = main(["info", "--json"])
    >>> status, sorted(json.loads(text.getvalue()))[0]
    (0, 'build')
    """
    parser = argparse.ArgumentParser(
        prog="python -m fastreg",
        description="L1, L2 and L1L2 penalties with their gradients, in one pass over memory.",
        epilog="`COMMAND --help` tells its options. bench has commands of its own: `bench compare "
        "A B` for two records or two commits, `bench frameworks` for PyTorch, JAX and Keras, and "
        "`bench record` and `bench page` for the tables of the documents.",
    )
    parser.add_argument("--version", action="version", version=f"fastreg {fastreg.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    info = commands.add_parser(
        "info", help="version, backend, instruction sets, threads, frameworks found"
    )
    info.add_argument("--json", action="store_true", help="print the facts as JSON")
    info.add_argument(
        "--torch",
        action="store_true",
        help="import torch, to see whose threads its tensors' calls use",
    )
    info.set_defaults(run=_info_command)

    bench = commands.add_parser(
        "bench",
        help="time the penalties, beside bare loops over the same memory and other libraries",
        usage="%(prog)s [options]\n       %(prog)s compare [options] A B\n"
        "       %(prog)s frameworks [options]\n       %(prog)s record [options]\n"
        "       %(prog)s page [options]",
        description=bench_options.DESCRIPTION,
        epilog=bench_options.EPILOG,
    )
    bench_options.add_to(bench)
    bench.set_defaults(run=partial(_benchmark, bench_options.check, "run"))
    # what is not given to `compare` keeps what `bench` has, also where that was given before it
    others = bench.add_subparsers(
        title="commands",
        description="without one, cases are measured",
        prog=bench.prog,
        metavar="COMMAND",
    )
    compare = others.add_parser(
        "compare",
        help="compare two records, or two commits",
        epilog=bench_options.COMPARE_EPILOG,
        argument_default=argparse.SUPPRESS,
    )
    bench_options.add_comparison(compare)
    compare.set_defaults(run=partial(_benchmark, bench_options.check_comparison, "run_compare"))
    adapters = others.add_parser(
        "frameworks",
        help="the adapters in PyTorch, JAX and Keras, beside the usual ways",
        epilog=bench_options.FRAMEWORKS_EPILOG,
    )
    bench_options.add_frameworks(adapters)
    adapters.set_defaults(run=partial(_benchmark, bench_options.check_frameworks, "run_frameworks"))
    headline = others.add_parser(
        "record",
        help="the headline cases on this machine, as a record",
        epilog=bench_options.RECORD_EPILOG,
    )
    bench_options.add_record(headline)
    headline.set_defaults(run=partial(_benchmark, bench_options.check_record, "run_record"))
    page = others.add_parser(
        "page",
        help="the tables of the documents, from all records",
        epilog=bench_options.PAGE_EPILOG,
    )
    bench_options.add_page(page)
    page.set_defaults(run=partial(_benchmark, bench_options.check_page, "run_page"))

    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["bench"]:
        before = itertools.takewhile(lambda argument: argument not in others.choices, given[1:])
        _refuse_unknown(bench, list(before))
    options = parser.parse_args(given)
    options.arguments = given
    try:
        status = int(options.run(options))
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has gone, as `head` does; nothing is left to say
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except bench_options.UsageError as error:
        print(f"{parser.prog} {options.command}: error: {error}", file=sys.stderr)
        return 2
    return status


def _refuse_unknown(bench: argparse.ArgumentParser, given: list[str]) -> None:
    """Name an unknown option before a command; argparse takes its value for the command."""
    alone = argparse.ArgumentParser(prog=bench.prog, usage=bench.usage, add_help=False)
    bench_options.add_to(alone)
    _, rest = alone.parse_known_args(given)
    if rest and rest[0].startswith("-") and not {"-h", "--help"} & {*rest}:
        bench.error(f"unrecognized arguments: {rest[0]}")


def _info_command(options: argparse.Namespace) -> int:
    if options.torch:
        try:
            importlib.import_module("torch")
        except ImportError as error:
            raise bench_options.UsageError(f"--torch needs torch: {error}") from None
    facts = _info.gather()
    print(json.dumps(facts, indent=2) if options.json else _info.render(facts))
    return 0


def _benchmark(check: Callable[[Any], None], command: str, options: argparse.Namespace) -> int:
    """Run a command of the benchmark, which is imported once its options are known to fit."""
    check(options)
    from fastreg.bench import cli

    return int(getattr(cli, command)(options))


if __name__ == "__main__":
    sys.exit(main())
