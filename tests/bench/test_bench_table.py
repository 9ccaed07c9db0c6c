"""Tables at the width of a terminal: everything, or less, and never a number that is cut."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

pytest.importorskip("rich")

from fastreg.__main__ import main
from fastreg.bench import screen
from fastreg.bench.accuracy import Errors
from fastreg.bench.cases import Case
from fastreg.bench.circumstances import Circumstances
from fastreg.bench.compare import Comparison
from fastreg.bench.row import Row, Work
from fastreg.bench.spread import Spread
from fastreg.bench.table import Detail, Table, comparison, table

# the longest cells there are
TIME, LOW, HIGH = 45.6e-3, 44.4e-3, 47.8e-3
TIMES = Spread(123.0, 111.0, 456.0)
ERRORS = Errors(1.2e-10, 3.4e-10)
WHAT = "step of 12 x TransformerEncoderLayer(768), batch 4, fused SGD"
LONG = "loss + penalties.value(), clipped"


def bench_table(circumstances: Circumstances) -> Callable[[Detail], Table]:
    names = ("torch-foreach", "torch-compile", "one tensor")
    samples = {name: [LOW, LOW, TIME, HIGH, HIGH] for name in names}
    samples["fastreg"] = [LOW / 111, LOW / 111, TIME / 123, HIGH / 456, HIGH / 456]
    samples["floor"] = [LOW / 22, LOW / 22, TIME * 0.0123, HIGH / 90, HIGH / 90]
    case = Case("bf16", "L1L2", "value+gradient", 16_777_216)
    rows = [Row(case, samples, {"numba-f32": "why"}, dict.fromkeys(samples, ERRORS))]
    return lambda detail: table(circumstances, rows, detail)


def table_of_frameworks(circumstances: Circumstances) -> Callable[[Detail], Table]:
    samples = {name: [TIME, LOW, HIGH] for name in ("usual", "bare", LONG)}
    samples["bare"] = [time / 100 for time in samples["usual"]]
    rows = [Row(Work("keras-torch", WHAT, "usual", "bare"), samples, {"x": "why"})]
    return lambda detail: table(circumstances, rows, detail)


def table_of_a_comparison(circumstances: Circumstances) -> Callable[[Detail], Table]:
    case = Case("bf16", "L1L2", "value+gradient", 16_777_216)
    spread = Spread(TIME, LOW, HIGH)
    found = [Comparison(case, spread, spread, TIMES, "slower", False)]
    return lambda detail: comparison("before.json", "after.json", found, detail)


TABLES = {
    "bench": (bench_table, ["45.6", "1.2", "123"], ["44.4", "47.8", "111", "456"]),
    "frameworks": (table_of_frameworks, ["45.6", "9900", "1.00"], ["45.0", "46.7"]),
    "compare": (table_of_a_comparison, ["45.6", "123"], ["44.4", "47.8", "111", "456"]),
}


def printed(
    kind: str,
    width: int | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Sequence[str]:
    monkeypatch.delenv("COLUMNS", raising=False)
    if width is not None:
        monkeypatch.setenv("COLUMNS", str(width))
    screen.show_table(TABLES[kind][0](Circumstances.here("", 1, {}, [])))
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert "…" not in "".join(lines)
    return lines


@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize("width", [20, 60, 80, 100, 119, 120, 132, 160, 200, None])
def test_numbers_are_whole_and_lines_fit(
    kind: str,
    width: int | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = printed(kind, width, monkeypatch, capsys)
    _, medians, bounds = TABLES[kind]
    text = "\n".join(lines)
    for number in medians:
        assert number in text
    for number in bounds:
        assert (number in text) == (width is None or width >= 120)
    if width is None or width >= 80:
        assert max(map(len, lines)) <= (width or screen.FILE_WIDTH)


def test_a_terminal_folds_lines_between_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It would fold them anywhere by itself, in the middle of a number."""
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setenv("TERM", "xterm")  # of a dumb one rich believes that it has 80 columns
    text = f"against the best of all peers 12,345.67 times {'ever so ' * 9}long"
    screen.show(text)
    assert capsys.readouterr().out == f"{text}\n"  # a file
    monkeypatch.setenv("FORCE_COLOR", "1")
    screen.show(text)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 30
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert any("12,345.67" in line for line in lines)


@pytest.mark.parametrize(("width", "there"), [(80, False), (120, False), (160, True)])
def test_rates_and_errors_where_there_is_room(
    width: int, there: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "\n".join(printed("bench", width, monkeypatch, capsys))
    assert ("value error" in text) == ("1e-10" in text) == there
    assert any("GB/s" in line and "variant " in line for line in text.splitlines()) == there


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["bench compare A B", "bench frameworks", "COMMAND --help"]),
        (
            ["bench"],
            [
                "one dtype, one penalty",
                "The floor is the fastest",
                "compare",
                "frameworks",
                "record",
            ],
        ),
    ],
)
def test_help_names_the_commands_and_says_what_its_words_mean(
    arguments: list[str],
    words: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    said = " ".join(text.split())
    for word in words:
        assert word in said
    assert "cell" not in said
    assert max(map(len, text.splitlines())) <= 80
