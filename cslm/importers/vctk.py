"""VCTK 0.92: `txt/SPEAKER/ID.txt` and `wav48_silence_trimmed/SPEAKER/ID_mic2.flac`; older: `wav48/`.

The second microphone is read, or the first where that is all there is; a speaker without texts (p315) is left
out. The language is English unless the settings name one. Layout: doi.org/10.7488/ds/2645.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cslm.importers.found import BadCorpus, Defaults, Found, Refused
from cslm.importers.manifest import read_lines
from cslm.importers.paths import BadPath, inside, inside_any

PLACES = ("wav48_silence_trimmed/{}_mic2.flac", "wav48_silence_trimmed/{}_mic1.flac", "wav48/{}.wav")


def read(root: Path, defaults: Defaults) -> Iterator[Found | Refused]:
    """Stream the utterances, speaker by speaker.

    Raises:
        BadCorpus: no `txt/SPEAKER/*.txt`.
    """
    speakers = sorted(path for path in (root / "txt").glob("*") if path.is_dir())
    if not speakers:
        raise BadCorpus(f"{root}: txt/SPEAKER/*.txt and wav48_silence_trimmed/ are needed")
    for speaker in speakers:
        for path in sorted(speaker.glob("*.txt")):
            yield _utterance(root, path, defaults)


def _utterance(root: Path, path: Path, defaults: Defaults) -> Found | Refused:
    place, speaker = str(path.relative_to(root)), path.parent.name
    try:
        text = " ".join(line.strip() for _, line in read_lines(inside(root, place)))
        audio = inside_any(root, [each.format(f"{speaker}/{path.stem}") for each in PLACES])
    except BadPath as error:
        return Refused(path.stem, place, str(error))
    return Found(
        id=path.stem,
        file=str(audio.relative_to(root)),
        audio=audio,
        text=text,
        language=defaults.language or "en",
        speaker=speaker,
        split=defaults.split,
    )
