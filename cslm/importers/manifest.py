"""Text manifests as people have them: with a BOM, with CRLF, with quotes, with a bad byte in one row.

Rows stream; a byte that is not UTF-8 becomes U+FFFD, for which taking the row in refuses that row alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from cslm.importers.found import BadCorpus, Refused

UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number from 1, text without its end) of each line that is not blank.

    Raises:
        BadCorpus: the file is UTF-16.
    """
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            if number == 1 and raw.startswith(UTF16_MARKS):
                raise BadCorpus(f"{path} is UTF-16; save it as UTF-8")
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8", "replace").rstrip("\r\n")
            if line.strip():
                yield number, line


def fields(line: str) -> list[str]:
    """The tab-separated fields of a line, trimmed, and without the quotes that CSV writers put around them."""
    return [_unquote(field.strip()) for field in line.split("\t")]


def _unquote(field: str) -> str:
    inner = field[1:-1]
    quoted = len(field) > 1 and field[0] == field[-1] == '"' and '"' not in inner.replace('""', "")
    return inner.replace('""', '"') if quoted else field


def read_named(
    path: Path, file: str, required: Collection[str], table: str = "utterances"
) -> Iterator[tuple[str, Mapping[str, str]] | Refused]:
    """(place for messages, {column: value}) of each row of a TSV file with a header line.

    Raises:
        BadCorpus: the header lacks a required column.
    """
    lines = read_lines(path)
    header = [name.casefold() for name in fields(next(lines, (1, ""))[1])]
    missing = [name for name in required if name not in header]
    if missing:
        raise BadCorpus(f"{path}: no column {', '.join(missing)}; its columns are {', '.join(header)}")
    for number, line in lines:
        values = fields(line)
        if len(values) != len(header):
            reason = f"{len(values)} fields, but the header names {len(header)}"
            yield Refused(values[0], f"{file}:{number}", reason, table)
        else:
            yield f"{file}:{number}", dict(zip(header, values, strict=True))
