"""Lhotse cut manifests: `*cuts*.jsonl[.gz]`, with recordings in the same folder.

A cut gives an utterance: its part of the recording, its channel, the text, speaker and language of its
supervisions. Cuts that are mixed or padded or lack a part of what their text says, and recordings that a
command or a URL would have to make, are refused. A manifest whose name holds a split
(`librispeech_cuts_dev-clean.jsonl.gz`) gives that split.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from cslm.importers.found import (
    BadCorpus,
    Defaults,
    Found,
    Refused,
    Segment,
    language_code,
    split_named,
)
from cslm.importers.paths import BadPath, inside, inside_any
from cslm.shards import UNKNOWN_SPEAKER

if TYPE_CHECKING:
    from lhotse.cut import Cut

PUNCTUATION = {" <COMMA>": ",", " <PERIOD>": ".", " <QUESTIONMARK>": "?", " <EXCLAMATIONPOINT>": "!"}
"""GigaSpeech's (github.com/SpeechColab/GigaSpeech): words before a blank and a tag."""
NO_SPEECH = {"<SIL>", "<MUSIC>", "<NOISE>", "<OTHER>"}
"""GigaSpeech's whole text where nobody speaks."""
NAMES = {"english": "en", "chinese": "zh", "mandarin": "zh"}
"""Lhotse's recipes write the English name of a language."""
CUT_OFF_S = 0.1
"""So much of a supervision may lie outside of its cut: times are rounded, and no word is as short."""


def read(root: Path, defaults: Defaults) -> Iterator[Found | Refused]:
    """Stream the cuts of every manifest.

    Raises:
        BadCorpus: no manifest, or one whose compression is broken.
    """
    paths = sorted({*root.glob("*cuts*.jsonl"), *root.glob("*cuts*.jsonl.gz")})
    if not paths:
        raise BadCorpus(f"{root}: no *cuts*.jsonl or *cuts*.jsonl.gz there")
    for path in paths:
        words = map(split_named, re.split(r"[_.]", path.name))
        split = next((word for word in words if word in ("train", "dev", "test")), defaults.split)
        try:
            for number, line in enumerate(_lines(inside(root, path.name)), 1):
                if line.strip():
                    yield _cut(root, f"{path.name}:{number}", line, split, defaults)
        except BadPath as error:
            yield Refused("", path.name, str(error))
        except (EOFError, OSError, zlib.error) as error:
            raise BadCorpus(f"{path}: broken in the middle, what follows cannot be read: {error}") from error


def _lines(path: Path) -> Iterator[bytes]:
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        yield from file


def _cut(root: Path, place: str, line: bytes, split: str, defaults: Defaults) -> Found | Refused:
    from lhotse.cut.set import deserialize_cut  # takes seconds to import, and only this format needs it

    try:
        cut = deserialize_cut(json.loads(line))
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
        return Refused("", place, f"no cut that lhotse can read: {type(error).__name__}: {error}")
    return _utterance(root, place, cut, split, defaults)


def _kind(transform: object) -> str:
    """What a transform of a recording is called, as an object or as it stands in the manifest."""
    return str(transform.get("name")) if isinstance(transform, dict) else type(transform).__name__


def _places(root: Path, file: Path) -> list[str]:
    """Where a recording may lie in the corpus: where it says, or behind the folder's name.

    Lhotse's recipes write the path by which they were given the folder in front, which is no more when the
    corpus is read elsewhere: `data/gigaspeech/audio/1.opus`, `/mnt/data/gigaspeech/audio/1.opus`.
    """
    named = [number for number, part in enumerate(file.parts[:-1], 1) if part == root.name]
    return [str(file), *(str(Path(*file.parts[number:])) for number in named)]


def _utterance(root: Path, place: str, cut: Cut, split: str, defaults: Defaults) -> Found | Refused:
    from lhotse.cut import MonoCut

    name = str(cut.id).replace("/", "_")
    if not isinstance(cut, MonoCut) or cut.recording is None:
        return Refused(name, place, f"a {type(cut).__name__} with no single recording; cut it first")
    if cut.recording.transforms:
        kinds = ", ".join(sorted({_kind(transform) for transform in cut.recording.transforms}))
        return Refused(name, place, f"its recording is to be changed ({kinds}) when it is read; save the audio")
    channel = int(cut.channel)
    sources = [source for source in cut.recording.sources if channel in source.channels]
    if len(sources) != 1 or sources[0].type != "file":
        kinds = ", ".join(sorted({source.type for source in cut.recording.sources}))
        return Refused(name, place, f"recording of type {kinds}: only files are read")
    file = Path(str(sources[0].source))
    try:
        audio = inside_any(root, _places(root, file))
    except BadPath as error:
        return Refused(name, f"{place} ({file})", str(error))
    spoken = cut.supervisions
    for part in spoken:
        if part.text and not (part.start >= -CUT_OFF_S and part.end <= cut.duration + CUT_OFF_S):
            return Refused(
                name,
                place,
                f"its text is of {part.start:.2f} to {part.end:.2f} s of a cut of {cut.duration:.2f} s; "
                "run lhotse cut trim-to-supervisions --discard-overlapping",
            )
    text = " ".join(str(s.text) for s in spoken if s.text)
    if text in NO_SPEECH:
        return Refused(name, place, f"no speech in it: {text}")
    for tag, mark in PUNCTUATION.items():
        text = text.replace(tag, mark)
    language = next((str(s.language) for s in spoken if s.language), "")
    return Found(
        id=name,
        file=f"{place} ({file})",
        audio=Segment(audio, float(cut.start), float(cut.duration), sources[0].channels.index(channel)),
        text=text,
        language=defaults.language or NAMES.get(language.casefold(), language_code(language)),
        speaker=next((str(s.speaker) for s in spoken if s.speaker), UNKNOWN_SPEAKER),
        split=split,
    )
