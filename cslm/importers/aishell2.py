"""AISHELL-2: `trans.txt` (`ID<TAB>text`) and `wav/SPEAKER/ID.wav`, in `iOS/data`, `iOS/dev`, `iOS/test`.

A folder that is called like a split gives it; the language is Mandarin; unless the settings say otherwise.
Layout: github.com/kaldi-asr/kaldi, egs/aishell2/s5.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cslm.importers.found import BadCorpus, Defaults, Found, Refused, split_named
from cslm.importers.manifest import read_lines
from cslm.importers.paths import BadPath, inside


def read(root: Path, defaults: Defaults) -> Iterator[Found | Refused]:
    """Stream the lines of the transcripts.

    Raises:
        BadCorpus: no `trans.txt` beside a folder `wav`.
    """
    transcripts = [path for path in sorted(root.rglob("trans.txt")) if (path.parent / "wav").is_dir()]
    if not transcripts:
        raise BadCorpus(f"{root}: no trans.txt beside wav/SPEAKER/*.wav there")
    for transcript in transcripts:
        yield from _read_folder(root, transcript, defaults)


def _read_folder(root: Path, transcript: Path, defaults: Defaults) -> Iterator[Found | Refused]:
    folder = transcript.parent.relative_to(root)
    place = str(transcript.relative_to(root))
    try:
        inside(root, place)
    except BadPath as error:
        yield Refused("", place, str(error))
        return
    split = next((s for s in map(split_named, folder.parts) if s in ("train", "dev", "test")), defaults.split)
    speakers = {path.stem: path.parent.name for path in sorted(transcript.parent.glob("wav/*/*.wav"))}
    for number, line in read_lines(transcript):
        name, _, text = line.partition("\t")
        file = str(folder / "wav" / speakers.get(name, "SPEAKER") / f"{name}.wav")
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
            language=defaults.language or "zh",
            speaker=speakers[name],
            split=split,
        )
