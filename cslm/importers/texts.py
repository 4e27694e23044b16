"""The text tables of a corpus, `dialogues.tsv` and `translations.tsv`, where it has them (any format)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from cslm.importers.found import Refused, broken
from cslm.importers.manifest import read_named
from cslm.importers.paths import BadPath, inside

REFERENCES = ("id", "question_speech", "answer_speech")


def read_texts(root: Path, table: str, schema: pa.Schema, prefix: str) -> Iterator[dict[str, str] | Refused]:
    """Stream the rows of `TABLE.tsv`; none if there is no such file. `prefix` goes before ids that are given.

    Raises:
        BadCorpus: the header lacks one of the schema's columns.
    """
    file = f"{table}.tsv"
    if not (root / file).is_symlink() and not (root / file).exists():
        return
    try:
        path = inside(root, file)
    except BadPath as error:
        yield Refused("", file, str(error), table)
        return
    for found in read_named(path, file, schema.names, table):
        if isinstance(found, Refused):
            yield found
            continue
        place, values = found
        row = {name: values[name] for name in schema.names}
        if why := broken("".join(row.values())):
            yield Refused(row["id"], place, why, table)
            continue
        if not row["id"].strip():
            yield Refused("", place, "no id", table)
            continue
        for name in REFERENCES:
            if row.get(name):
                row[name] = prefix + row[name]
        yield row
