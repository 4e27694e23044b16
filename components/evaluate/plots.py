"""The plots of the report, as SVG images that stand inside the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from cslm.audio import SAMPLE_RATE, Samples
from cslm.decoder.mel import log_mel
from cslm.evaluation.streaming import Timing

INK, QUIET, RULE = "#26323c", "#64717d", "#dfe4e8"
COLORS = ("#2b6a73", "#c08a3e", "#8a97a3")
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "cslm",
    "font.family": "sans-serif",
    "font.sans-serif": ["Inter", "Helvetica Neue", "Arial", "DejaVu Sans"],
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": QUIET,
    "xtick.color": QUIET,
    "ytick.color": INK,
    "axes.edgecolor": RULE,
}


@dataclass(frozen=True)
class Rate:
    """One point: a rate with its interval, in a row of the plot and a series (split)."""

    row: str
    series: str
    value: float
    interval: tuple[float, float]


def rates(points: Sequence[Rate], targets: Mapping[str, float]) -> str:
    """Dots with their 95 % intervals, a row a figure, a color a split; a tick marks a row's target."""
    rows = list(dict.fromkeys(point.row for point in points))
    series = list(dict.fromkeys(point.series for point in points))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.4, 0.75 + 0.55 * len(rows)), layout="constrained")
        axes = figure.add_subplot()
        for index, name in enumerate(series):
            color = COLORS[index % len(COLORS)]
            shift = (index - (len(series) - 1) / 2) * 0.2
            chosen = [point for point in points if point.series == name]
            heights = [rows.index(point.row) + shift for point in chosen]
            axes.hlines(
                heights,
                [p.interval[0] for p in chosen],
                [p.interval[1] for p in chosen],
                color=color,
                linewidth=2,
                alpha=0.55,
            )
            axes.scatter([p.value for p in chosen], heights, s=30, color=color, label=name, zorder=3)
        for row, target in targets.items():
            if row in rows:
                height = rows.index(row)
                axes.vlines(target, height - 0.38, height + 0.38, color=INK, linewidth=1, linestyle=":")
        axes.set_yticks(range(len(rows)), rows)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=None))
        axes.legend(frameon=False, ncols=len(series), loc="lower left", bbox_to_anchor=(0, 1))
        calm(axes)
        return _embed(figure)


def latency(measured: Mapping[str, Any]) -> str:
    """Two pairs of bars: generated tokens and seconds to the first speech, interleaved against full chain."""
    chains = {"interleaved": "interleaved chain", "full_chain": "full chain"}
    panels = {
        "tokens": ("tokens to the first unit", "{:.1f}"),
        "seconds": ("seconds to the first unit", "{:.3f} s"),
        "chunk_seconds": ("seconds to the first whole chunk", "{:.3f} s"),
    }
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.4, 1.6), layout="constrained")
        grid = figure.subplots(1, len(panels), sharey=True)
        for axes, (field, (title, form)) in zip(grid, panels.items(), strict=True):
            values = [float(measured[chain][field]) for chain in chains]
            axes.barh(list(chains.values()), values, color=[COLORS[0], COLORS[2]], height=0.55)
            for row, value in enumerate(values):
                axes.text(value + max(values) * 0.04, row, form.format(value), va="center", fontsize=9)
            axes.set_title(title, loc="left", fontsize=10, color=QUIET)
            axes.set_xlim(0, max(values) * 1.4)
            axes.set_xticks([])
            axes.set_ylim(1.5, -0.5)
            calm(axes)
        return _embed(figure)


def played(timing: Timing) -> list[tuple[float, float]]:
    """When each piece of sound of an answer begins and ends: when the one before has ended, and it is there.

    In seconds after the question.
    """
    times: list[tuple[float, float]] = []
    for kind, ready, sounding in timing.events:
        if kind == "speech":
            begin = max(ready, times[-1][1]) if times else ready
            times.append((begin, begin + sounding))
    return times


def waterfall(timing: Timing) -> str:
    """One answer as it came: texts as ticks, each piece of sound when it was ready and when it is played."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.4, 2.2), layout="constrained")
        axes = figure.add_subplot()
        rows = {"heard": 0, "text": 1, "speech": 2}
        for kind, seconds, _ in timing.events:
            axes.scatter(seconds, rows[kind], s=26, color=COLORS[0], zorder=3)
        for begin, end in played(timing):
            axes.barh(3, end - begin, left=begin, height=0.5, color=COLORS[0], edgecolor="white")
        axes.axvline(timing.end, color=COLORS[1], linewidth=1, linestyle=":")
        axes.text(timing.end, -0.75, " all made", color=COLORS[1], fontsize=9)
        axes.set_yticks(range(4), ["question heard", "text of a chunk", "sound ready", "sound played"])
        axes.set_ylim(3.5, -1)
        axes.set_xlim(left=0)
        axes.set_xlabel("seconds after the question")
        calm(axes)
        return _embed(figure)


def spectrograms(sounds: Mapping[str, Samples]) -> str:
    """Log-mel spectrograms under each other, on one time axis."""
    longest = max(len(samples) for samples in sounds.values()) / SAMPLE_RATE
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.4, 1.5 * len(sounds)), layout="constrained")
        grid = figure.subplots(len(sounds), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (title, samples) in zip(grid, sounds.items(), strict=True):
            mel = log_mel(torch.from_numpy(samples)).T.numpy()
            axes.imshow(
                mel,
                origin="lower",
                aspect="auto",
                extent=(0, len(samples) / SAMPLE_RATE, 0, len(mel)),
                cmap="magma",
                vmin=-5,
                vmax=0.5,
            )
            axes.set_title(title, loc="left", fontsize=10, color=QUIET)
            axes.set_xlim(0, longest)
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
        grid[-1].set_xlabel("seconds")
        return _embed(figure)


def calm(axes: Axes) -> None:
    """Hold back everything but the data and the lines to read it by."""
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="x", color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)


def _embed(figure: Figure) -> str:
    """The figure as a data URI, the same bytes for the same figure."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()
