"""AISHELL-1: `wav/SPLIT/SPEAKER/ID.wav` and `transcript/aishell_transcript_v0.8.txt` (`ID words ...`).

The transcript's words are separated by blanks that Mandarin does not write; they are taken out.
The language is Mandarin unless the settings name one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from cslm.importers.found import BadCorpus, Defaults, Found, Refused, split_named
from cslm.importers.manifest import read_lines
from cslm.importers.paths import BadPath, inside

SPEAKER = re.compile(r"S\d{4}")
BLANK_BETWEEN_HAN = re.compile(r"(?<=[\u3400-\u9fff])\s+(?=[\u3400-\u9fff])")


def read(root: Path, defaults: Defaults) -> Iterator[Found | Refused]:
    """Stream the lines of the transcript.

    Raises:
        BadCorpus: no transcript, or no folders of speakers.
    """
    transcripts = sorted((root / "transcript").glob("aishell*transcript*.txt"))
    splits = {path.name: path.parent.name for path in (root / "wav").glob("*/*") if path.is_dir()}
    if not transcripts or not splits:
        raise BadCorpus(f"{root}: transcript/aishell_transcript_v0.8.txt and wav/SPLIT/SPEAKER/ are needed")
    for transcript in transcripts:
        place = str(transcript.relative_to(root))
        try:
            inside(root, place)
        except BadPath as error:
            yield Refused("", place, str(error))
            continue
        for number, line in read_lines(transcript):
            yield _utterance(root, f"{place}:{number}", line, splits, defaults)


def _utterance(
    root: Path, place: str, line: str, splits: dict[str, str], defaults: Defaults
) -> Found | Refused:
    name, _, text = line.partition(" ")
    found = SPEAKER.search(name)
    speaker = found.group() if found else ""
    if speaker not in splits:
        return Refused(name, place, f"no folder wav/SPLIT/{speaker or 'S....'} for its speaker")
    file = f"wav/{splits[speaker]}/{speaker}/{name}.wav"
    try:
        audio = inside(root, file)
    except BadPath as error:
        return Refused(name, f"{place} ({file})", str(error))
    return Found(
        id=name,
        file=file,
        audio=audio,
        text=BLANK_BETWEEN_HAN.sub("", text.strip()),
        language=defaults.language or "zh",
        speaker=speaker,
        split=split_named(splits[speaker]),
    )
