"""A corpus in the wild becomes Parquet shards of 16 kHz mono speech, and tables of its texts.

Run:  python -m components.ingest --corpus assistant

Reads `corpora.KEY` of params.yaml and the folder it names (docs/corpora.md draws each layout). Writes
`work/corpora/KEY`: `utterances/*.parquet`, `dialogues.parquet`, `translations.parquet`, `origins.parquet` with
the file of each utterance, and `rejected.parquet` with file and reason of every row that could not be taken
in. Rows stream: memory holds one row group, whatever the number of rows.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from components.ingest.ids import Ids
from components.settings import Corpus
from components.stage import Stage, StageFailed
from cslm.audio import BadAudio
from cslm.importers import IMPORTERS, TEXTS, BadCorpus, Defaults, Found, Refused
from cslm.importers.found import broken, shown
from cslm.importers.intake import BadRow, take_in
from cslm.importers.texts import read_texts
from cslm.shards import UTTERANCE, ShardWriter
from cslm.tables import DIALOGUE, ORIGIN, REJECTED, SPLITS, TRANSLATION, table_writer

PROGRESS_S = 5.0

log = logging.getLogger("cslm")


class Intake:
    """What was taken in so far: the ids, and counts by split and language for limit, log and metrics."""

    def __init__(self, key: str, corpus: Corpus, ids: Ids, origins: ShardWriter, rejected: ShardWriter) -> None:
        self.key, self.corpus, self.ids = key, corpus, ids
        self.origins, self.rejected = origins, rejected
        # ids of a corpus are its own business; those of `shards` are the project's, and dialogues name them
        self.prefix = "" if corpus.format == "shards" else f"{key}-"
        self.counts: dict[str, Counter[str]] = defaultdict(Counter)
        self.hours: Counter[str] = Counter()
        self.left_out: Counter[str] = Counter()
        self._told = time.monotonic()

    def wanted(self, split: str) -> bool:
        """Whether rows of this split are taken in (or refused, if it is unknown); others are counted."""
        if self.corpus.splits is None or split in self.corpus.splits or split not in SPLITS:
            return True
        self.left_out[split] += 1
        return False

    def full(self, table: str, split: str) -> bool:
        """Whether the limit of this split is reached."""
        return self.corpus.limit is not None and self.counts[table][split] >= self.corpus.limit

    def refuse(self, refused: Refused) -> None:
        """Put a row on the list of rejected ones."""
        row = {"table": refused.table, "id": refused.id, "file": refused.file, "reason": refused.reason}
        row = {name: shown(value) for name, value in row.items()}
        if not self.rejected.rows:
            log.info("ingest/%s: refused %s: %s", self.key, row["file"], row["reason"])
        self.rejected.write(row)

    def utterances(self, found: Iterator[Found | Refused]) -> Iterator[dict[str, Any]]:
        """Rows of what was found; what cannot be read is refused on the way."""
        for item in found:
            self._tell()
            if isinstance(item, Refused):
                self.refuse(item)
            elif not self.wanted(item.split):
                continue
            elif why := broken(item.id):
                self.refuse(Refused(item.id, item.file, why))
            elif self.prefix + item.id in self.ids:
                self.refuse(Refused(item.id, item.file, "the id is there twice; the first one is kept"))
            elif not self.full("utterances", item.split):
                try:
                    row = take_in(item, self.corpus.source or self.key, self.prefix)
                except (BadAudio, BadRow, OSError) as error:
                    self.refuse(Refused(item.id, item.file, str(error)))
                    continue
                self.ids.add(row["id"])
                self.origins.write({"id": row["id"], "file": shown(item.file)})
                self.counts["utterances"][row["split"]] += 1
                self.hours[row["language"]] += row["duration_s"] / 3600
                yield row

    def texts(self, table: str, found: Iterator[dict[str, str] | Refused]) -> Iterator[dict[str, str]]:
        """Rows of a text table; under a limit, only dialogues whose question is text or was taken in."""
        for row in found:
            if isinstance(row, Refused):
                self.refuse(row)
                continue
            if not self.wanted(row["split"]):
                continue
            asked = row.get("question_speech")
            unheard = self.corpus.limit is not None and asked and asked not in self.ids
            # a dialogue with speech is limited by its utterance already
            if not unheard and (asked or not self.full(table, row["split"])):
                self.counts[table][row["split"]] += 1
                yield row

    def _tell(self) -> None:
        if time.monotonic() - self._told > PROGRESS_S:
            self._told = time.monotonic()
            print(f"progress: {self.summary()}", flush=True)

    def summary(self) -> str:
        """Counts in words."""
        hours = ", ".join(f"{hours:.2f} h {language}" for language, hours in sorted(self.hours.items()))
        words = [f"{self.counts['utterances'].total()} utterances ({hours or 'none'})"]
        words += [f"{self.counts[table].total()} {table}" for table in ("dialogues", "translations")]
        if self.left_out:
            words.append(
                f"{self.left_out.total()} rows of other splits ({', '.join(sorted(self.left_out))}) left out"
            )
        return ", ".join([*words, f"{self.rejected.rows} rows refused"])

    def metrics(self) -> dict[str, Any]:
        """Counts by split, hours by language."""
        tables = ("utterances", "dialogues", "translations")
        return {
            **{table: {"total": self.counts[table].total(), **self.counts[table]} for table in tables},
            "hours": dict(self.hours),
            "rejected": self.rejected.rows,
            "left_out": {"total": self.left_out.total(), **self.left_out},
        }


def ingest(key: str, corpus: Corpus, folder: Path) -> Intake:
    """Write the tables of one corpus into `folder`.

    Raises:
        BadCorpus: the corpus is not of the format that the settings name.
    """
    root = Path(corpus.path)
    if not root.is_dir():
        raise BadCorpus(f"{root}: no such folder")
    defaults = Defaults(corpus.language, corpus.split)
    with ExitStack() as stack:
        origins = stack.enter_context(table_writer(folder / "origins.parquet", ORIGIN))
        rejected = stack.enter_context(table_writer(folder / "rejected.parquet", REJECTED))
        intake = Intake(key, corpus, stack.enter_context(Ids.scratch()), origins, rejected)
        with ShardWriter(folder / "utterances", UTTERANCE) as writer:
            for row in intake.utterances(IMPORTERS[corpus.format](root, defaults)):
                writer.write(row)
        for table, schema in (("dialogues", DIALOGUE), ("translations", TRANSLATION)):
            with table_writer(folder / f"{table}.parquet", schema) as writer:
                found = read_texts(root, table, schema, intake.prefix)
                if table in (own := TEXTS.get(corpus.format, {})):
                    found = itertools.chain(found, own[table](root, defaults, intake.prefix))
                for text in intake.texts(table, found):
                    writer.write(text)
    return intake


def main(corpus: Annotated[str, typer.Option(help="key under `corpora` in params.yaml")]) -> None:
    """Turn a corpus (params.yaml: corpora.KEY) into Parquet shards under work/corpora/KEY."""
    with Stage(f"ingest/{corpus}") as stage:
        known = stage.settings.corpora
        if corpus not in known:
            raise StageFailed(f"params.yaml has no corpora.{corpus}; it has {', '.join(known)}")
        try:
            with stage.output(f"work/corpora/{corpus}") as folder:
                intake = ingest(corpus, known[corpus], folder)
        except BadCorpus as error:
            raise StageFailed(
                f"corpora.{corpus} (format {known[corpus].format}): {error}; docs/corpora.md draws each layout"
            ) from error
        stage.log_metrics(intake.metrics())
        log.info("ingest/%s: %s", corpus, intake.summary())


if __name__ == "__main__":
    main.__doc__ = __doc__  # what --help shows
    typer.run(main)
