"""What was measured: rows of results.json, and the table of speed.md that is made of them.

A measurement compares two ways to do the same work. They take turns (ours, baseline, ours, baseline, ...), so
that a slow moment of the machine hits both; each figure is the median of its turns.
"""

from __future__ import annotations

import datetime
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).absolute().parents[1]
RESULTS = ROOT / "benchmarks" / "results.json"
BEGIN, END = "<!-- from results.json -->\n", "<!-- to here -->\n"
HEADER = "| what | against | ours | baseline | ratio | target | n | measured |\n" + "|---" * 8 + "|\n"


@dataclass(frozen=True)
class Measured:
    """Ours and the baseline in one unit; `n` turns of each."""

    what: str
    against: str
    ours: float
    baseline: float
    unit: str
    n: int
    target: str = ""
    """`ratio >= 1.5`, `ours <= 5`, or empty."""

    @property
    def ratio(self) -> float:
        """Ours by the baseline's."""
        return self.ours / self.baseline


def by_turns(ours: Callable[[int], float], baseline: Callable[[int], float], turns: int) -> tuple[float, float]:
    """Medians of what both give, called by turns with the number of the turn."""
    pairs = [(ours(turn), baseline(turn)) for turn in range(turns)]
    return median(pair[0] for pair in pairs), median(pair[1] for pair in pairs)


def record(rows: Mapping[str, Measured], path: Path = RESULTS) -> None:
    """Print rows, and put them into results.json and the table of speed.md beside it; other rows stay."""
    now = {
        "date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}",
        "cpu": f"{len(os.sched_getaffinity(0))} cores of {_processor()}",
        "commit": _commit(),
        "command": shlex.join(["python", "-m", *_module_and_options()]),
    }
    for name, row in rows.items():
        print(f"{name}: {_number(row.ours)} against {_number(row.baseline)} {row.unit}: {row.ratio:.2f}")
    path.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(path.read_text("utf-8")) if path.exists() else {}
    known |= {name: {"ratio": row.ratio, **asdict(row), **now} for name, row in rows.items()}
    _write(path, json.dumps(dict(sorted(known.items())), indent=1, ensure_ascii=False) + "\n")
    page = path.with_name("speed.md")
    text = page.read_text("utf-8") if page.exists() else f"# Speed\n\n{BEGIN}{END}"
    before, _, rest = text.partition(BEGIN)
    _write(page, before + BEGIN + table(known) + END + rest.partition(END)[2])


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The rows of results.json as Markdown, and the commands that they are from."""
    lines = [f"| {' | '.join(_cells(row))} |\n" for _, row in sorted(rows.items())]
    commands = sorted({f"- `{row['command']}`, {row['cpu']}\n" for row in rows.values()})
    return "\n" + HEADER + "".join(lines) + "\nMeasured by:\n\n" + "".join(commands) + "\n"


def _cells(row: Mapping[str, Any]) -> list[str]:
    figures = [f"{_number(row[name])} {row['unit']}" for name in ("ours", "baseline")]
    when = f"{row['date']}, {row['commit']}"
    return [
        row["what"],
        row["against"],
        *figures,
        f"**{row['ratio']:.2f}**",
        _verdict(row),
        str(row["n"]),
        when,
    ]


def reached(row: Mapping[str, Any]) -> bool:
    """Whether a row is within its target; true without one."""
    if not row["target"]:
        return True
    name, sign, limit = row["target"].split()
    return bool(row[name] >= float(limit) if sign == ">=" else row[name] <= float(limit))


def _verdict(row: Mapping[str, Any]) -> str:
    if not row["target"]:
        return ""
    return f"{row['target'].replace('>=', '≥').replace('<=', '≤')}: {'ok' if reached(row) else 'MISSED'}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def _module_and_options() -> Sequence[str]:
    spec = sys.modules["__main__"].__spec__
    return [spec.name if spec else "?", *sys.argv[1:]]


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, "utf-8")
    partial.rename(path)
