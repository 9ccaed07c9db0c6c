"""The rows of a run as a picture: share of the floor in every cell, ratio to NumPy over the size.

Contract: drawn without a window, whatever Matplotlib's configured backend; the file's suffix
chooses the format.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from fastreg.bench.record import Circumstances
from fastreg.bench.run import Row

PEER = "numpy"


def save(path: Path, circumstances: Circumstances, rows: Sequence[Row]) -> None:
    """Draw the rows into ``path``."""
    dtypes = _in_order(row.case.dtype for row in rows)
    sizes = sorted({row.case.size for row in rows})
    shown = sizes[-2:] if len(sizes) > 1 else sizes
    figure = Figure(figsize=(15, 7.2), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(circumstances.title(), fontsize=10)
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(1.15, 1.0))[0]

    heat_maps = left.subplots(1, len(shown), squeeze=False, sharey=True)[0]
    for axes, size in zip(heat_maps, shown, strict=True):
        _heat_map(axes, [row for row in rows if row.case.size == size], f"{size:,} elements")

    columns = min(2, len(dtypes))
    lines = -(-len(dtypes) // columns)
    panels = right.subplots(lines, columns, squeeze=False, sharex=True, sharey=True).ravel()
    for axes, dtype in zip(panels, dtypes, strict=False):
        _ratios(axes, [row for row in rows if row.case.dtype == dtype], dtype)
    for axes in panels[len(dtypes) :]:
        axes.set_visible(False)
    handles, labels = panels[0].get_legend_handles_labels()
    right.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    right.suptitle(f"times faster than {PEER} ({_widest_term(rows)})", fontsize=11)
    left.suptitle("speed as a share of the floor: the bare loop over the same bytes", fontsize=11)
    figure.savefig(path, dpi=130)


def _heat_map(axes: Axes, rows: Sequence[Row], title: str) -> None:
    """Outputs across, dtype and terms down; 100 % is the bare loop."""
    across = _in_order(row.case.outputs for row in rows)
    down = _in_order(f"{row.case.dtype} {row.case.terms}" for row in rows)
    shares = np.full((len(down), len(across)), np.nan)
    for row in rows:
        place = down.index(f"{row.case.dtype} {row.case.terms}"), across.index(row.case.outputs)
        shares[place] = row.share_of_floor.median
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


def _ratios(axes: Axes, rows: Sequence[Row], dtype: str) -> None:
    """One line per output over the size, with its quartiles as a band."""
    term = _widest_term(rows)
    for outputs in _in_order(row.case.outputs for row in rows):
        chosen = [r for r in rows if (r.case.outputs, r.case.terms) == (outputs, term)]
        chosen = sorted((r for r in chosen if PEER in r.ratio_to_peer), key=lambda r: r.case.size)
        sizes = [row.case.size for row in chosen]
        spreads = [row.ratio_to_peer[PEER] for row in chosen]
        (line,) = axes.plot(
            sizes, [spread.median for spread in spreads], marker="o", markersize=4, label=outputs
        )
        lows, highs = [s.low for s in spreads], [s.high for s in spreads]
        axes.fill_between(sizes, lows, highs, color=line.get_color(), alpha=0.2, linewidth=0)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}x")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.axhline(1.0, color="black", linewidth=1)
    axes.grid(which="major", alpha=0.3)
    axes.set_title(dtype, fontsize=10)
    axes.set_xlabel("elements")
    axes.label_outer()


def _widest_term(rows: Sequence[Row]) -> str:
    """L1L2 where it was measured."""
    return max((row.case.terms for row in rows), key=len)


def _in_order(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
