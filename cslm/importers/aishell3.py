"""AISHELL-3: `SPLIT/content.txt` (`ID.wav<TAB>word pinyin word pinyin ...`) and `SPLIT/wav/SPEAKER/ID.wav`.

Pinyin is left out. The language is Mandarin unless the settings name one. Layout: openslr.org/93.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cslm.importers.found import BadCorpus, Defaults, Found, Refused, split_named
from cslm.importers.manifest import read_lines
from cslm.importers.paths import BadPath, inside

SPEAKER_LETTERS = 7
"""`SSB0005` of `SSB00050001.wav`."""


def read(root: Path, defaults: Defaults) -> Iterator[Found | Refused]:
    """Stream the lines of the transcripts.

    Raises:
        BadCorpus: no `SPLIT/content.txt`.
    """
    transcripts = sorted(root.glob("*/content.txt"))
    if not transcripts:
        raise BadCorpus(f"{root}: no train/content.txt or test/content.txt there")
    for transcript in transcripts:
        place = str(transcript.relative_to(root))
        try:
            inside(root, place)
        except BadPath as error:
            yield Refused("", place, str(error))
            continue
        for number, line in read_lines(transcript):
            yield _utterance(root, f"{place}:{number}", transcript.parent.name, line, defaults)


def _utterance(root: Path, place: str, split: str, line: str, defaults: Defaults) -> Found | Refused:
    name, _, content = line.partition("\t")
    words = content.split()
    speaker = name[:SPEAKER_LETTERS]
    file = f"{split}/wav/{speaker}/{name}"
    try:
        if len(words) % 2:
            raise BadPath("a word has no pinyin")
        audio = inside(root, file)
    except BadPath as error:
        return Refused(Path(name).stem, f"{place} ({file})", str(error))
    return Found(
        id=Path(name).stem,
        file=file,
        audio=audio,
        text="".join(words[::2]),
        language=defaults.language or "zh",
        speaker=speaker,
        split=split_named(split),
    )
