"""A Hugging Face dataset on disk (what `save_to_disk` of a Dataset or DatasetDict writes), memory-mapped.

Columns, under their usual names: audio; text, sentence, transcription, transcript or normalized_text;
speaker_id, client_id or speaker; language or locale; id. Audio stays encoded until the row is taken in.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cslm.importers.found import (
    BadCorpus,
    Defaults,
    Found,
    Refused,
    language_code,
    split_named,
)
from cslm.importers.paths import BadPath, inside
from cslm.shards import UNKNOWN_SPEAKER

TEXT = ("text", "sentence", "transcription", "transcript", "normalized_text")
SPEAKER = ("speaker", "speaker_id", "client_id")
LANGUAGE = ("language", "locale")


def read(root: Path, defaults: Defaults) -> Iterator[Found | Refused]:
    """Stream the rows of each split.

    Raises:
        BadCorpus: not a saved dataset, one whose files lie elsewhere, or without audio, text or language.
    """
    _check_files(root)
    import datasets  # takes seconds to import, and only this format needs it

    try:
        saved = datasets.load_from_disk(str(root))
    except (FileNotFoundError, ValueError, OSError) as error:
        raise BadCorpus(f"{root} is not a dataset of save_to_disk: {error}") from error
    parts = saved if isinstance(saved, datasets.DatasetDict) else {defaults.split: saved}
    for split, part in parts.items():
        names = part.column_names
        text, language = _first(TEXT, names), _first(LANGUAGE, names)
        if "audio" not in names or text is None:
            raise BadCorpus(f"{root}: columns audio and {' or '.join(TEXT)} are needed, not {', '.join(names)}")
        if language is None and defaults.language is None:
            raise BadCorpus(f"{root} has no column language: set corpora.*.language in params.yaml")
        part = part.cast_column("audio", datasets.Audio(decode=False))
        for number, row in enumerate(part):
            yield _utterance(root, f"{split}#{number}", row, text, language, defaults, split_named(str(split)))


def _check_files(root: Path) -> None:
    """Refuse a dataset that names data outside of its folder: `datasets` would open it."""
    listing = root / "dataset_dict.json"
    if listing.exists():
        try:
            for split in json.loads(listing.read_text("utf-8"))["splits"]:
                inside(root, f"{split}/state.json")
        except (ValueError, KeyError, TypeError) as error:
            raise BadCorpus(f"{listing}: a split that it names cannot be used: {error}") from error
    for state in sorted(root.rglob("state.json")):
        try:
            inside(root, state.relative_to(root).as_posix())
            files = json.loads(state.read_text("utf-8"))["_data_files"]
            for name in [file["filename"] for file in files]:
                inside(state.parent, str(name))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BadCorpus(f"{state}: a data file that it names cannot be used: {error}") from error


def _first(wanted: tuple[str, ...], names: list[str]) -> str | None:
    return next((name for name in wanted if name in names), None)


def _utterance(
    root: Path,
    place: str,
    row: Mapping[str, Any],
    text: str,
    language: str | None,
    defaults: Defaults,
    split: str,
) -> Found | Refused:
    name = str(row["id"]) if row.get("id") is not None else place.replace("#", "-")
    audio = row["audio"] or {}
    speaker = next((row[key] for key in SPEAKER if row.get(key) is not None), UNKNOWN_SPEAKER)
    try:
        source = audio.get("bytes") or inside(root, audio.get("path") or "")
    except BadPath as error:
        return Refused(name, f"{place} ({audio.get('path')})", str(error))
    return Found(
        id=name,
        file=place,
        audio=source,
        text=str(row[text] or ""),
        language=defaults.language or language_code(str(row[language or ""])),
        speaker=str(speaker),
        split=split,
    )
