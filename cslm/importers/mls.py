"""Multilingual LibriSpeech: `SPLIT/transcripts.txt` (`ID<TAB>text`) and `SPLIT/audio/SPEAKER/BOOK/ID.flac`.

The folder is of one language (`mls_english`, `mls_english_opus`), which its name tells unless the settings do.
Layout: openslr.org/94.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cslm.importers.found import BadCorpus, Defaults, Found, Refused, split_named
from cslm.importers.manifest import read_lines
from cslm.importers.paths import BadPath, inside, inside_any

SUFFIXES = (".flac", ".opus")
LANGUAGES = {
    "english": "en",
    "german": "de",
    "dutch": "nl",
    "french": "fr",
    "spanish": "es",
    "italian": "it",
    "portuguese": "pt",
    "polish": "pl",
}


def read(root: Path, defaults: Defaults) -> Iterator[Found | Refused]:
    """Stream the lines of the transcripts.

    Raises:
        BadCorpus: no `SPLIT/transcripts.txt`, or the language is not told.
    """
    transcripts = sorted(root.glob("*/transcripts.txt"))
    if not transcripts:
        raise BadCorpus(f"{root}: no train/, dev/ or test/transcripts.txt there")
    language = defaults.language or next((LANGUAGES[n] for n in LANGUAGES if f"mls_{n}" in root.name), None)
    if language is None:
        raise BadCorpus(f"{root} is not called mls_LANGUAGE: set corpora.*.language in params.yaml")
    for transcript in transcripts:
        place = str(transcript.relative_to(root))
        try:
            inside(root, place)
        except BadPath as error:
            yield Refused("", place, str(error))
            continue
        for number, line in read_lines(transcript):
            name, _, text = line.partition("\t")
            yield _utterance(root, f"{place}:{number}", transcript.parent.name, name.strip(), text, language)


def _utterance(root: Path, place: str, split: str, name: str, text: str, language: str) -> Found | Refused:
    speaker, _, rest = name.partition("_")
    book = rest.partition("_")[0]
    stem = f"{split}/audio/{speaker}/{book}/{name}"
    try:
        audio = inside_any(root, [stem + suffix for suffix in SUFFIXES])
    except BadPath as error:
        return Refused(name, f"{place} ({stem}.flac)", str(error))
    return Found(
        id=name,
        file=str(audio.relative_to(root)),
        audio=audio,
        text=text.strip(),
        language=language,
        speaker=speaker,
        split=split_named(split),
    )
