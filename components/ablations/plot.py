"""A plot of the variants: a panel a figure, a row a variant."""

from __future__ import annotations

import io
from collections.abc import Mapping

import matplotlib
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import PercentFormatter

from components.ablations.comparison import SHOWN, Figure, change
from components.evaluate.plots import INK, QUIET, STYLE, calm

COLUMNS = 4
COLORS = {1: "#2b6a73", 0: "#8a97a3", -1: "#b4532a"}


def draw(measured: Mapping[str, Mapping[str, Figure]], titles: Mapping[str, str]) -> bytes:
    """PNG: dots with 95 % intervals; a line goes down from the first variant; color tells better or worse."""
    rows = -(-len(SHOWN) // COLUMNS)
    names = list(measured)
    with matplotlib.rc_context(STYLE):
        canvas = Canvas(figsize=(13, 0.6 + 2.2 * rows), layout="constrained")
        grid = canvas.subplots(rows, COLUMNS, sharey=True, squeeze=False).ravel()
        for axes, (figure, title) in zip(grid, SHOWN.items(), strict=False):
            base = measured[names[0]].get(figure)
            for row, name in enumerate(names):
                point = measured[name].get(figure)
                if point is None:
                    continue
                color = COLORS[change(figure, base, point)] if base and row else INK
                axes.hlines(row, point.low, point.high, color=color, linewidth=2, alpha=0.55)
                axes.scatter(point.value, row, s=30, color=color, zorder=3)
            if base:
                axes.axvline(base.value, color=QUIET, linewidth=1, linestyle=":")
            axes.set_title(title, loc="left", fontsize=10, color=INK)
            axes.set_yticks(range(len(names)), [titles[name] for name in names])
            axes.set_ylim(len(names) - 0.5, -0.5)
            axes.set_xlim(left=0)
            axes.locator_params(axis="x", nbins=4)
            if not figure.startswith("first_unit"):
                axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=None))
            calm(axes)
        for axes in grid[len(SHOWN) :]:
            axes.set_visible(False)
        buffer = io.BytesIO()
        canvas.savefig(buffer, format="png", dpi=110, facecolor="white")
    return buffer.getvalue()
