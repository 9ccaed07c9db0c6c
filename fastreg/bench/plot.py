"""The rows of a run as a picture: time over size for everyone, and each cell's share of its floor.

Contract: drawn without a window, whatever Matplotlib's configured backend; the file's suffix
chooses the format. Times are shown for the widest term measured (L1L2), models as squares beside
the lines; shares for every cell at the largest sizes and at each model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure

from fastreg._base import files
from fastreg.bench.circumstances import Circumstances
from fastreg.bench.peers import PEERS
from fastreg.bench.row import FLOOR, ONE_TENSOR, OWN, Row

#: How many sizes get a map of their shares: the largest.
MAPS = 2
PANEL_INCHES = 3.0


def save(path: Path, circumstances: Circumstances, rows: Sequence[Row]) -> None:
    """Draw the rows into ``path``."""
    dtypes = _in_order(row.case.dtype for row in rows)
    outputs = _in_order(row.case.outputs for row in rows)
    sizes = sorted({row.case.size for row in rows if not row.case.model})[-MAPS:]
    places = [f"{size:,}" for size in sizes]
    places += _in_order(row.case.model for row in rows if row.case.model)

    panels_high = PANEL_INCHES * 0.8 * len(dtypes) + 1.0
    maps_high = 0.28 * len({(row.case.dtype, row.case.terms) for row in rows}) + 2.2
    width = max(PANEL_INCHES * len(outputs), 4.5 * len(places), 7.0)
    figure = Figure(figsize=(width, panels_high + maps_high), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(circumstances.title(), fontsize=9, wrap=True)
    upper, lower = figure.subfigures(2, 1, squeeze=False, height_ratios=(panels_high, maps_high))[
        :, 0
    ]
    _times(upper, rows, dtypes, outputs)

    lower.suptitle(
        "speed as a share of the floor, the fastest bare loop over the same bytes", fontsize=11
    )
    maps = lower.subplots(1, len(places), squeeze=False, sharey=True)[0]
    for axes, place in zip(maps, places, strict=True):
        chosen = [row for row in rows if row.case.place == place]
        title = place if chosen[0].case.model else f"{place} elements"
        _heat_map(axes, chosen, title)
    suffix = path.suffix.lower().removeprefix(".")
    files.replace(path, lambda file: figure.savefig(file, dpi=130, format=suffix))


def _times(
    figure: SubFigure, rows: Sequence[Row], dtypes: Sequence[str], outputs: Sequence[str]
) -> None:
    """Draw a panel per dtype and output, a line per variant, its quartiles as a band."""
    term = max((row.case.terms for row in rows), key=len)
    figure.suptitle(f"time per call, {term}", fontsize=11)
    panels = figure.subplots(len(dtypes), len(outputs), squeeze=False, sharex=True, sharey=True)
    names = [name for name in (FLOOR, OWN, *PEERS) if _measured(rows, name)]
    colours = {name: f"C{place}" for place, name in enumerate(PEERS)}
    styles = {
        FLOOR: {"color": "black", "linestyle": ":", "linewidth": 1.2},
        OWN: {"color": "black", "linewidth": 2.2},
    }
    lines = {}
    for (y, x), axes in np.ndenumerate(panels):
        cell = [
            row
            for row in rows
            if (row.case.dtype, row.case.outputs, row.case.terms) == (dtypes[y], outputs[x], term)
        ]
        for name in names:
            style = styles.get(name, {"color": colours.get(name), "linewidth": 1.2})
            found = sorted(
                (
                    (
                        row.case.size,
                        row.seconds(row.floor if name == FLOOR else name),
                        row.case.model,
                    )
                    for row in cell
                    if name in row.samples
                ),
                key=lambda item: item[0],
            )
            tensors = [(size, seconds) for size, seconds, model in found if not model]
            models = [(size, seconds) for size, seconds, model in found if model]
            (lines[name],) = axes.plot(
                [size for size, _ in tensors],
                [seconds.median for _, seconds in tensors],
                marker="o",
                markersize=3,
                label=name,
                **style,
            )
            axes.fill_between(
                [size for size, _ in tensors],
                [seconds.low for _, seconds in tensors],
                [seconds.high for _, seconds in tensors],
                color=style["color"],
                alpha=0.15,
                linewidth=0,
            )
            axes.plot(
                [size for size, _ in models],
                [seconds.median for _, seconds in models],
                marker="s",
                markersize=5,
                markerfacecolor="none",
                linestyle="none",
                color=style["color"],
            )
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.grid(which="major", alpha=0.3)
        axes.set_title(f"{dtypes[y]} {outputs[x]}", fontsize=9)
        axes.set_xlabel("elements")
        axes.set_ylabel("seconds")
        axes.label_outer()
    figure.legend(
        lines.values(),
        lines.keys(),
        loc="outside lower center",
        ncols=min(len(lines), 6),
        frameon=False,
    )


def _heat_map(axes: Axes, rows: Sequence[Row], title: str) -> None:
    """Outputs across, dtype and terms down; 100 % is the bare loop."""
    across = _in_order(row.case.outputs for row in rows)
    down = _in_order(f"{row.case.dtype} {row.case.terms}" for row in rows)
    shares = np.full((len(down), len(across)), np.nan)
    for row in rows:
        place = down.index(f"{row.case.dtype} {row.case.terms}"), across.index(row.case.outputs)
        shares[place] = row.share_of_floor(OWN).median
    # one hue from light to dark reads without colour too; the floor is near its dark end
    axes.imshow(shares, cmap="YlGnBu", vmin=0.0, vmax=1.2, aspect="auto")
    for (y, x), share in np.ndenumerate(shares):
        if np.isfinite(share):
            colour = "white" if share > 0.65 else "black"
            axes.text(x, y, f"{share:.0%}", ha="center", va="center", fontsize=9, color=colour)
    for y, (upper, lower) in enumerate(pairwise(down)):
        if upper.split()[0] != lower.split()[0]:
            axes.axhline(y + 0.5, color="white", linewidth=3)
    axes.set_xticks(range(len(across)), across, rotation=30, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(down)), down)
    axes.tick_params(length=0)
    axes.set_title(title, fontsize=10)


def _measured(rows: Sequence[Row], name: str) -> bool:
    return name != ONE_TENSOR and any(name in row.samples for row in rows)


def _in_order(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
