"""A manifest and a folder of audio: `*.tsv` with `id<TAB>text`, and `wav/ID.wav`.

The manifest may have a header line that names its columns in any order (id, text, speaker, split,
language, file); without one, two columns are id and text, three are id, speaker and text. A manifest that
is called like a split (`test.tsv`) gives its rows that split.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from cslm.importers.found import (
    BadCorpus,
    Defaults,
    Found,
    Refused,
    language_code,
    split_named,
)
from cslm.importers.manifest import fields, read_lines
from cslm.importers.paths import BadPath, inside
from cslm.shards import UNKNOWN_SPEAKER

ALIASES = {"sentence": "text", "transcript": "text", "path": "file", "audio": "file", "locale": "language"}
COLUMNS = ("id", "text", "speaker", "split", "language", "file")
HEADERLESS = {2: ("id", "text"), 3: ("id", "speaker", "text")}
FOLDERS = ("wav", "audio", "clips", ".")
SUFFIXES = (".wav", ".flac", ".mp3", ".opus", ".ogg", ".sph", "")
OTHER_TABLES = ("dialogues.tsv", "translations.tsv")


def read(root: Path, defaults: Defaults) -> Iterator[Found | Refused]:
    """Stream the rows of every manifest of the folder.

    Raises:
        BadCorpus: no manifest, one whose columns are unknown, or no language given anywhere.
    """
    manifests = [path for path in sorted(root.glob("*.tsv")) if path.name not in OTHER_TABLES]
    if not manifests:
        raise BadCorpus(f"{root}: no manifest (*.tsv with id<TAB>text) there")
    for path in manifests:
        try:
            inside(root, path.name)
        except BadPath as error:
            yield Refused("", path.name, str(error))
            continue
        yield from _read_manifest(root, path, defaults)


def _read_manifest(root: Path, path: Path, defaults: Defaults) -> Iterator[Found | Refused]:
    columns: tuple[str, ...] | None = None
    split = split_named(path.stem)
    split = split if split in ("train", "dev", "test", "heldout_voice") else defaults.split
    for number, line in read_lines(path):
        values = fields(line)
        place = f"{path.name}:{number}"
        if columns is None:
            columns = _header(values)
            if columns is not None:
                _check_header(path, columns, defaults)
                continue
            columns = _headerless(path, values, defaults)
        if len(values) != len(columns):
            expected = f"{len(columns)} are expected ({', '.join(columns)})"
            yield Refused(values[0], place, f"{len(values)} fields; {expected}")
            continue
        yield _utterance(root, place, dict(zip(columns, values, strict=True)), defaults, split)


def _header(values: list[str]) -> tuple[str, ...] | None:
    names = tuple(ALIASES.get(value.casefold(), value.casefold()) for value in values)
    return names if "text" in names and ("id" in names or "file" in names) else None


def _check_header(path: Path, columns: tuple[str, ...], defaults: Defaults) -> None:
    if len(set(columns)) < len(columns):
        raise BadCorpus(f"{path}: two columns mean the same: {', '.join(columns)}")
    if "language" not in columns and defaults.language is None:
        raise BadCorpus(f"{path} has no column language: set corpora.*.language in params.yaml")


def _headerless(path: Path, values: list[str], defaults: Defaults) -> tuple[str, ...]:
    if len(values) not in HEADERLESS:
        raise BadCorpus(
            f"{path}: its first line has {len(values)} fields; without a header two (id, text) or three "
            f"(id, speaker, text) are known; with one: {', '.join(COLUMNS)} in any order"
        )
    _check_header(path, HEADERLESS[len(values)], defaults)
    return HEADERLESS[len(values)]


def _utterance(
    root: Path, place: str, row: Mapping[str, str], defaults: Defaults, split: str
) -> Found | Refused:
    name = row.get("id") or Path(row.get("file", "")).stem
    try:
        audio = _audio(root, row)
    except BadPath as error:
        return Refused(name, f"{place} ({row.get('file') or name})", str(error))
    return Found(
        id=name,
        file=f"{place} ({audio.relative_to(root)})",
        audio=audio,
        text=row["text"],
        language=defaults.language or language_code(row["language"]),
        speaker=row.get("speaker") or UNKNOWN_SPEAKER,
        split=split_named(row["split"]) if row.get("split") else split,
    )


def _audio(root: Path, row: Mapping[str, str]) -> Path:
    """The audio of a row: its `file`, or the first of wav/ID.wav, wav/ID.flac, ..., ID.wav, ID."""
    if row.get("file"):
        return inside(root, row["file"])
    name = row.get("id")
    if not name:
        raise BadPath("neither id nor file")
    refusal = BadPath("")
    for folder in FOLDERS:
        for suffix in SUFFIXES:
            try:
                return inside(root, f"{folder}/{name}{suffix}")
            except BadPath as error:
                refusal = error
        if str(refusal) != "no such file":
            raise refusal
    raise BadPath(f"no such file (wav/{name}.wav, or .flac, .mp3, .opus, .ogg, .sph)")
