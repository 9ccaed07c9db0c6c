"""The tables of the documents, from all records of processors.

Contract: a page has a line ``<!-- records: NAME -->`` and a line ``<!-- end of records -->``; what
stands between them is the table of that name, the same text whenever it is made of the same
records. Figures of several processors stand in lines below each other, but side by side in the
README, and a figure that misses its bar is bold.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastreg._base import dtypes, files
from fastreg.bench import bars, table
from fastreg.bench.cases import Case
from fastreg.bench.circumstances import Circumstances
from fastreg.bench.headline import RECORDS_FOLDER
from fastreg.bench.record import Record, stages_from_json
from fastreg.bench.row import FLOOR, OWN, Row
from fastreg.bench.spread import Spread

ROOT = RECORDS_FOLDER.parents[1]
PAGES = (ROOT / "README.md", ROOT / "docs" / "performance.md")
MARKED = re.compile(
    r"(?P<begin><!-- records: (?P<name>[a-z]+) -->\n).*?(?P<end><!-- end of records -->)", re.DOTALL
)

#: The bare loops in a cell, by one letter; what the letters mean stands below each table.
LETTERS = {FLOOR: "b", f"{FLOOR}-numpy": "n", f"{FLOOR}-numpy-add": "a", f"{FLOOR}-torch": "t"}
LOOPS = "Fastest loop: b fastreg's bare one, n NumPy's, a NumPy's addition, t torch's."
MEMORY = {
    "numpy": "NumPy's",
    "torch": "torch's",
    "small-pages": "small pages",
    "aligned": "aligned",
}
WORDS = {
    "value": "value",
    "value+gradient": "value and gradient",
    "value+add": "value, gradient added",
    "new-gradient": "new gradient",
    "value+new-gradient": "value, new gradient",
}
SHORT_OUTPUTS = ("value", "value+add")
SHORT_SIZES = (1_000, 16_777_216)
PEER_COLUMNS = ("numba", "numba-f32", "jax", "torch-compile", "numpy")

Cells = dict[tuple[str, ...], dict[str, str]]


@dataclass(frozen=True)
class Processor:
    """The record of a processor."""

    name: str
    stages: Mapping[str, Record]
    missing: Sequence[str]

    @property
    def threads(self) -> int:
        """All threads, where a case does not say how many it had."""
        return next(iter(self.stages.values())).circumstances.threads

    @property
    def cache_bytes(self) -> int:
        """The size of the last cache; 0 where the system did not tell."""
        memory = next(iter(self.stages.values())).circumstances.memory or {}
        sizes = [
            cache["size"] for cache in memory.get("caches", ()) if cache["size"][:-1].isdigit()
        ]
        return max(
            (int(size[:-1]) * {"K": 2**10, "M": 2**20}[size[-1]] for size in sizes), default=0
        )

    def rows(self, *stages: str) -> list[Row]:
        """Return the rows of some stages, as far as they are recorded; by default of all."""
        chosen = stages or tuple(self.stages)
        return [row for name in chosen if name in self.stages for row in self.stages[name].rows]


def processors(folder: Path = RECORDS_FOLDER) -> list[Processor]:
    """Return what was recorded, by the names of the files."""
    return [read(path) for path in sorted(folder.glob("*.json"))]


def read(path: Path) -> Processor:
    """Return the record of a processor."""
    document = json.loads(path.read_text(encoding="utf-8"))
    stages = stages_from_json(document)
    missing = dict.fromkeys(
        peer for stage in document["stages"].values() for peer in stage.get("missing", ())
    )
    found = next(iter(stages.values())).circumstances
    facts = found.processor or {}
    numbers = ", ".join(f"{key} {facts[key]}" for key in ("family", "model") if key in facts)
    name = found.machine["processor"] + (f" ({numbers})" if numbers else "")
    return Processor(f"{name}, {found.machine['cores']} cores", stages, list(missing))


def shortfalls(path: Path) -> list[str]:
    """Return how many cells of a record have a bar, and those that miss it."""
    one = read(path)
    judged = [found for row in one.rows() for found in bars.judged(row, one.cache_bytes)]
    missed = [str(found) for found in judged if not found.meets]
    return [f"{len(judged)} figures have a bar, {len(missed)} miss it", *missed]


def regenerate(
    write: bool, pages: Sequence[Path] = PAGES, folder: Path = RECORDS_FOLDER
) -> list[Path]:
    """Return the pages whose tables are not what the records give, written anew if wanted."""
    found, changed = processors(folder), []
    for page in pages:
        text = page.read_text(encoding="utf-8")
        renewed = MARKED.sub(
            lambda match: f"{match['begin']}{TABLES[match['name']](found)}\n{match['end']}", text
        )
        if renewed != text:
            changed.append(page)
            if write:
                files.replace_text(page, renewed)
    return changed


def described(found: Sequence[Processor]) -> str:
    """Return where, when and how each record came about."""
    lines = []
    for one in found:
        of = [record.circumstances for record in one.stages.values()]
        lines.append(f"- **{one.name}**: {_machine(of[0])}")
        lines.append(f"  {_software(of)}")
        if one.missing:
            lines.append(f"  Not installed there: {', '.join(one.missing)}.")
        doubts: dict[str, list[str]] = {}
        for name, record in one.stages.items():
            for doubt in record.circumstances.doubts(record.rows):
                doubts.setdefault(doubt, []).append(name)
        listed = "; ".join(f"{', '.join(stages)}: {doubt}" for doubt, stages in doubts.items())
        if listed:
            lines.append(f"  In doubt: {listed}.")
    return "\n".join(lines)


def _machine(found: Circumstances) -> str:
    memory = found.memory or {}
    caches = ", ".join(
        f"L{cache['level']} {cache['size']}"
        for cache in memory.get("caches", ())
        if cache["type"] != "Instruction"
    )
    policy = f"; policy {found.policy['name']}" if found.policy else ""
    pages = f"pages of {memory.get('page_bytes')} bytes, large ones: {memory.get('huge_pages')}"
    system = f"{found.machine['system']}; {found.compiler}"
    return f"{found.instruction_set}{policy}; {caches}; {pages}; {system}."


def _software(of: Sequence[Circumstances]) -> str:
    versions = {name: text for found in of for name, text in found.versions.items()}
    listed = ", ".join(f"{name} {text}" for name, text in versions.items() if name != "fastreg")
    dates = sorted({found.date[:10] for found in of})
    commits = dict.fromkeys(str(found.commit)[:12] for found in of)
    when = " to ".join(dict.fromkeys((dates[0], dates[-1])))
    return (
        f"Python {of[0].machine['python']}, {listed}; {when}, "
        f"{of[0].repeats} turns, commit {', '.join(commits)}."
    )


def from_memory(found: Sequence[Processor]) -> str:
    """Return times the floor from DRAM, by size."""
    return _by_size(
        found, ("floors", "floors-1", "pages"), ("dtype", "outputs", "memory", "threads")
    )


def half(found: Sequence[Processor]) -> str:
    """Return times the floor of half precision."""
    return _by_size(found, ("half", "half-1"), ("dtype", "outputs", "memory", "threads"))


def new(found: Sequence[Processor]) -> str:
    """Return times the best new copy."""
    return _by_size(found, ("new", "new-1"), ("dtype", "outputs", "threads"))


def _by_size(found: Sequence[Processor], stages: Sequence[str], heads: Sequence[str]) -> str:
    cells: Cells = {}
    sizes = set()
    for one, row in _rows_of(found, stages):
        sizes.add(row.case.size)
        line = cells.setdefault(_label(found, one, row.case, heads), {})
        line[f"{row.case.size:,}"] = _to_floor(row)
    columns = [f"{size:,}" for size in sorted(sizes)]
    return f"{_markdown(_heads(found, heads), columns, _in_order(cells))}\n\n{LOOPS}"


def policies(found: Sequence[Processor]) -> str:
    """Return times the best policy, by size."""
    heads = ("dtype", "outputs", "threads")
    cells: Cells = {}
    sizes = set()
    for one, row in _rows_of(found, ("policies",)):
        sizes.add(row.case.size)
        times = bars.to_best_policy(row)
        best = bars.best_policy(row)
        text = f"{table.ratio(times)} {'itself' if best == OWN else best.removeprefix(f'{OWN}-')}"
        line = cells.setdefault(_label(found, one, row.case, heads), {})
        line[f"{row.case.size:,}"] = _emphasised(text, times.median > bars.POLICY_TIMES)
    columns = [f"{size:,}" for size in sorted(sizes)]
    return _markdown(_heads(found, heads), columns, _in_order(cells))


def models(found: Sequence[Processor]) -> str:
    """Return times the floor of whole models, and times one tensor's time."""
    heads, cells = ("outputs", "memory", "threads"), {}
    for one, row in _rows_of(found, ("models",)):
        one_tensor = row.times_fastreg("one tensor")
        inverse = Spread(1 / one_tensor.median, 1 / one_tensor.high, 1 / one_tensor.low)
        cells[(row.case.model, *_label(found, one, row.case, heads))] = {
            "fastreg": table.duration(row.seconds(OWN)),
            "times the floor": _to_floor(row),
            "times one tensor": table.ratio(inverse),
        }
    columns = ("fastreg", "times the floor", "times one tensor")
    return f"{_markdown(('model', *_heads(found, heads)), columns, cells)}\n\n{LOOPS}"


def peers(found: Sequence[Processor]) -> str:
    """Return how many times fastreg's time each peer takes."""
    heads, cells = ("dtype", "outputs", "elements", "threads"), {}
    chosen = _rows_of(found, ("cache", "cache-1", "peers", "peers-1", "largest"))
    for one, row in chosen:
        line = {"fastreg": table.duration(row.seconds(OWN)), "times the floor": _to_floor(row)}
        for name in row.compared:
            limit = bars.peer_limit(row.case, name, one.cache_bytes)
            times = row.times_fastreg(name)
            line[name] = _emphasised(
                table.ratio(times), limit is not None and not bars.reaches(times, limit)
            )
        cells[_label(found, one, row.case, heads)] = line
    columns = ("fastreg", "times the floor", *PEER_COLUMNS)
    return f"{_markdown(_heads(found, heads), columns, _in_order(cells))}\n\n{LOOPS}"


def short(found: Sequence[Processor]) -> str:
    """Return a few float32 cells on all threads beside NumPy, as the README shows them.

    A line for each cell, whatever the number of processors: their figures stand side by side.
    """
    columns = ("time", "of the fastest loop's speed", "times NumPy's speed")
    of_each = [_short_cells(one) for one in found]
    cells: Cells = {}
    for label in dict.fromkeys(label for figures in of_each for label in figures):
        shown = [figures.get(label, ("-",) * len(columns)) for figures in of_each]
        cells[label] = dict(zip(columns, map(", ".join, zip(*shown, strict=True)), strict=True))
    where = "; ".join(
        f"{one.name}, {min(record.circumstances.date for record in one.stages.values())[:10]}"
        for one in found
    )
    order = " (in this order)" if len(found) > 1 else ""
    heads = ("L1L2 of float32", "elements")
    return f"{_markdown(heads, columns, _in_order(cells))}\n\nMeasured on {where}{order}."


def _short_cells(one: Processor) -> dict[tuple[str, ...], tuple[str, ...]]:
    """Return time, share of the floor and times NumPy's speed of the cells that are shown."""
    found: dict[tuple[str, ...], tuple[str, ...]] = {}
    for row in one.rows("cache", "peers"):
        case = row.case
        is_shown = case.outputs in SHORT_OUTPUTS and case.size in SHORT_SIZES
        if case.dtype == "f32" and "numpy" in row.samples and is_shown:
            found[WORDS[case.outputs], f"{case.size:,}"] = (
                table.duration(row.seconds(OWN), narrow=True),
                table.percentage(row.share_of_floor(OWN), narrow=True),
                table.ratio(row.times_fastreg("numpy"), narrow=True),
            )
    return found


def torch(found: Sequence[Processor]) -> str:
    """Return what penalties add to steps of torch."""
    cells: Cells = {}
    for one, row in _rows_of(found, ("torch",)):
        missed = any(not judged.meets for judged in bars.judged(row, one.cache_bytes))
        for name in row.samples:
            added, usual = row.added(name), row.of_usual(name)
            is_judged = name == bars.ACCUMULATE
            time = table.duration(row.seconds(name))
            line = {
                "time": _emphasised(time, is_judged and missed and row.work.addition is None),
                "added to the step": "" if added is None else table.percentage(added),
                "times the usual way": "" if usual is None else table.ratio(usual),
            }
            if is_judged and row.work.addition in row.samples:
                beyond = table.percentage(bars.beyond_addition(row))
                line["beyond one addition"] = _emphasised(beyond, missed)
            cells[(row.work.what, name, *_processor(found, one))] = line
    columns = ("time", "added to the step", "beyond one addition", "times the usual way")
    return _markdown(("what", "variant", *_heads(found, ())), columns, cells)


#: By the name in a page.
TABLES: dict[str, Callable[[Sequence[Processor]], str]] = {
    "processors": described,
    "floors": from_memory,
    "half": half,
    "new": new,
    "policies": policies,
    "models": models,
    "peers": peers,
    "short": short,
    "torch": torch,
}


def _rows_of(found: Sequence[Processor], stages: Sequence[str]) -> Iterator[tuple[Processor, Row]]:
    """Yield the rows of stages; those of several processors alternate."""
    of_each = [[(one, row) for row in one.rows(*stages)] for one in found]
    for place in range(max(map(len, of_each), default=0)):
        for rows in of_each:
            yield from rows[place : place + 1]


def _label(
    found: Sequence[Processor], one: Processor, case: Case, heads: Sequence[str]
) -> tuple[str, ...]:
    words = {
        "dtype": dtypes.spoken(case.dtype),
        "outputs": WORDS[case.outputs],
        "elements": f"{case.size:,}",
        "memory": MEMORY[case.memory] + (", after torch" if case.before == "torch" else ""),
        "threads": str(case.threads or one.threads),
    }
    return (*(words[head] for head in heads), *_processor(found, one))


def _in_order(cells: Cells) -> Cells:
    """Return lines by dtype and outputs; the rest keeps the order of the stages."""
    places = {
        name: place
        for place, name in enumerate((*map(dtypes.spoken, dtypes.FLOATS), *WORDS.values()))
    }
    return dict(
        sorted(cells.items(), key=lambda item: [places[w] for w in item[0][:2] if w in places])
    )


def _processor(found: Sequence[Processor], one: Processor) -> tuple[str, ...]:
    return (one.name,) if len(found) > 1 else ()


def _heads(found: Sequence[Processor], heads: Sequence[str]) -> tuple[str, ...]:
    return (*heads, "processor") if len(found) > 1 else tuple(heads)


def _to_floor(row: Row) -> str:
    times, limit = row.times_floor(OWN), bars.floor_limit(row.case)
    text = f"{table.ratio(times)} {LETTERS[row.floor]}"
    return _emphasised(text, limit is not None and times.median > limit)


def _emphasised(text: str, wanted: bool) -> str:
    return f"**{text}**" if wanted else text


def _markdown(heads: Sequence[str], columns: Iterable[str], cells: Cells) -> str:
    """Return a table; a label that repeats the line above stands there once."""
    columns = list(columns)
    lines = [f"| {' | '.join((*heads, *columns))} |"]
    lines.append(f"|{'---|' * len(heads)}{'---:|' * len(columns)}")
    above: tuple[str, ...] = ()
    for label, line in cells.items():
        shown = list(label)
        for place in range(min(2, len(label))):
            if label[: place + 1] == above[: place + 1]:
                shown[place] = ""
        lines.append(f"| {' | '.join((*shown, *(line.get(name, '') for name in columns)))} |")
        above = label
    return "\n".join(re.sub(r"\|  (?=\|)", "| ", line) for line in lines)
