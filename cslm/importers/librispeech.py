"""LibriSpeech: `[SUBSET/]SPEAKER/CHAPTER/*.flac` and one `SPEAKER-CHAPTER.trans.txt` in each chapter.

A subset's name gives the split (`dev-clean` -> dev). The language is English unless the settings name one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from cslm.importers.found import BadCorpus, Defaults, Found, Refused, split_named
from cslm.importers.manifest import read_lines
from cslm.importers.paths import BadPath, inside

SUFFIXES = (".flac", ".wav", ".opus")


def read(root: Path, defaults: Defaults) -> Iterator[Found | Refused]:
    """Stream the utterances, chapter by chapter.

    Raises:
        BadCorpus: no `*.trans.txt` anywhere.
    """
    transcripts = 0
    for transcript in _transcripts(root):
        transcripts += 1
        yield from _read_chapter(root, transcript, defaults)
    if not transcripts:
        raise BadCorpus(f"{root}: no SPEAKER/CHAPTER/*.trans.txt there")


def _transcripts(root: Path) -> Iterator[Path]:
    for folder, subfolders, names in os.walk(root):
        subfolders.sort()
        yield from (Path(folder, name) for name in sorted(names) if name.endswith(".trans.txt"))


def _read_chapter(root: Path, transcript: Path, defaults: Defaults) -> Iterator[Found | Refused]:
    place = str(transcript.relative_to(root))
    try:
        inside(root, place)
    except BadPath as error:
        yield Refused("", place, str(error))
        return
    folder = transcript.parent.relative_to(root)
    split = next((s for s in map(split_named, folder.parts) if s in ("train", "dev", "test")), defaults.split)
    untold = {path.stem: path.name for path in transcript.parent.iterdir() if path.suffix in SUFFIXES}
    for number, line in read_lines(transcript):
        name, _, text = line.partition(" ")
        file = str(folder / untold.pop(name, f"{name}.flac"))
        try:
            audio = inside(root, file)
        except BadPath as error:
            yield Refused(name, f"{place}:{number} ({file})", str(error))
            continue
        yield Found(
            id=name,
            file=file,
            audio=audio,
            text=text.strip(),
            language=defaults.language or "en",
            speaker=transcript.parent.parent.name,
            split=split,
        )
    for name, file in sorted(untold.items()):
        yield Refused(name, str(folder / file), f"no line in {transcript.name}")
