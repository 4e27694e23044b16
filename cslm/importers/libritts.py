"""LibriTTS and LibriTTS-R: `SUBSET/SPEAKER/CHAPTER/*.wav` and one `SPEAKER_CHAPTER.trans.tsv` in each chapter.

A line is `ID<TAB>original text<TAB>normalised text`, of which the normalised one is read. A subset's name gives
the split. The language is English unless the settings name one. Layout: openslr.org/60.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from cslm.importers.found import BadCorpus, Defaults, Found, Refused, split_named
from cslm.importers.manifest import read_lines
from cslm.importers.paths import BadPath, inside

ENDING = ".trans.tsv"


def read(root: Path, defaults: Defaults) -> Iterator[Found | Refused]:
    """Stream the utterances, chapter by chapter.

    Raises:
        BadCorpus: no `*.trans.tsv` anywhere.
    """
    transcripts = 0
    for folder, subfolders, names in os.walk(root):
        subfolders.sort()
        for name in sorted(names):
            if name.endswith(ENDING) and not name.startswith("."):
                transcripts += 1
                yield from _read_chapter(root, Path(folder, name), defaults)
    if not transcripts:
        raise BadCorpus(f"{root}: no SUBSET/SPEAKER/CHAPTER/*{ENDING} there")


def _read_chapter(root: Path, transcript: Path, defaults: Defaults) -> Iterator[Found | Refused]:
    place = str(transcript.relative_to(root))
    try:
        inside(root, place)
    except BadPath as error:
        yield Refused("", place, str(error))
        return
    folder = transcript.parent.relative_to(root)
    split = next((s for s in map(split_named, folder.parts) if s in ("train", "dev", "test")), defaults.split)
    for number, line in read_lines(transcript):
        name, *texts = line.split("\t")
        file = str(folder / f"{name}.wav")
        try:
            if len(texts) != 2:
                raise BadPath(f"{len(texts) + 1} fields; 3 are expected (id, original, normalised)")
            audio = inside(root, file)
        except BadPath as error:
            yield Refused(name, f"{place}:{number} ({file})", str(error))
            continue
        yield Found(
            id=name,
            file=file,
            audio=audio,
            text=texts[1].strip(),
            language=defaults.language or "en",
            speaker=name.partition("_")[0],
            split=split,
        )
