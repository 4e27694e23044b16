"""Turn the accepted speech of one language into merged units and durations.

Run:  python -m components.tokenize --language en

Reads `work/accepted` and `work/tokenizer`, writes `work/units/LANGUAGE`. Training speech is there once more at
each of `tokenize.speeds`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import typer

from components.stage import Stage, StageFailed
from cslm.shards import ShardWriter, read_rows
from cslm.tokenizer import open_tokenizer
from cslm.tokenizer.corpus import tokenize

UTTERANCES = Path("work/accepted/utterances")
REPORT_EVERY = 500

UNITS = pa.schema(
    [
        *((name, pa.string()) for name in ("id", "language", "split", "speaker", "text")),
        ("speed", pa.float64()),
        ("duration_s", pa.float64()),
        ("units", pa.list_(pa.int32())),
        ("durations", pa.list_(pa.int32())),
    ]
)


def main(language: Annotated[str, typer.Option(help="language whose utterances to encode")]) -> None:
    """Encode the speech of one language."""
    with Stage(f"tokenize/{language}") as stage:
        tokenizer = open_tokenizer(Path("work/tokenizer"))
        rows = versions(language, stage.settings.tokenize.speeds)
        seconds = frames = units = 0.0
        used: set[int] = set()
        started = time.monotonic()
        with (
            stage.output(f"work/units/{language}") as folder,
            ShardWriter(folder, UNITS) as writer,
        ):
            for row in tokenize(tokenizer, rows, stage.settings.tokenize.batch_seconds):
                writer.write({name: row[name] for name in UNITS.names})
                seconds += row["duration_s"]
                frames += sum(row["durations"])
                units += len(row["units"])
                used.update(row["units"])
                if writer.rows % REPORT_EVERY == 0:
                    print(f"progress: {writer.rows} utterances, {seconds / 3600:.2f} h", flush=True)
            if not writer.rows:
                raise StageFailed(
                    f"no accepted utterance is in {language!r}; correct `languages` in params.yaml, or see "
                    "report/validation for why all were refused"
                )
        stage.log_metrics(
            {
                "utterances": writer.rows,  # at every speed
                "hours": seconds / 3600,
                "units_per_second": units / seconds,
                "frames_per_unit": frames / units,
                "codes_used": len(used) / tokenizer.units,
                "real_time_factor": (time.monotonic() - started) / seconds,
            }
        )


def versions(language: str, speeds: Sequence[float]) -> Iterator[dict[str, Any]]:
    """Utterances of a language; those of training also at other speeds."""
    for row in read_rows(UTTERANCES):
        if row["language"] == language:
            for speed in [1.0, *(speeds if row["split"] == "train" else [])]:
                yield {**row, "speed": speed, "duration_s": row["duration_s"] / speed}


if __name__ == "__main__":
    main.__doc__ = __doc__  # what --help shows
    typer.run(main)
