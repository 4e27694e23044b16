"""Mozilla Common Voice: `train.tsv`, `dev.tsv`, `test.tsv` (or `validated.tsv` alone) and `clips/*.mp3`.

If a manifest of a split is there, `validated.tsv` is not read: it holds the same clips again.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cslm.importers.found import (
    BadCorpus,
    Defaults,
    Found,
    Refused,
    language_code,
)
from cslm.importers.manifest import read_named
from cslm.importers.paths import BadPath, inside
from cslm.shards import UNKNOWN_SPEAKER


def read(root: Path, defaults: Defaults) -> Iterator[Found | Refused]:
    """Stream the rows of the manifests.

    Raises:
        BadCorpus: no manifest, one without `path` or `sentence`, or no language given anywhere.
    """
    manifests = {split: f"{split}.tsv" for split in ("train", "dev", "test")}
    manifests = {split: name for split, name in manifests.items() if (root / name).is_file()}
    if not manifests and (root / "validated.tsv").is_file():
        manifests = {defaults.split: "validated.tsv"}
    if not manifests:
        raise BadCorpus(f"{root}: none of train.tsv, dev.tsv, test.tsv, validated.tsv there")
    for split, name in manifests.items():
        try:
            inside(root, name)
        except BadPath as error:
            yield Refused("", name, str(error))
            continue
        required = ["path", "sentence"] if defaults.language else ["path", "sentence", "locale"]
        for row in read_named(root / name, name, required):
            if isinstance(row, Refused):
                yield row
                continue
            place, values = row
            file = f"clips/{values['path']}"
            clip = Path(values["path"]).stem
            try:
                audio = inside(root, file)
            except BadPath as error:
                yield Refused(clip, f"{place} ({file})", str(error))
                continue
            yield Found(
                id=clip,
                file=file,
                audio=audio,
                text=values["sentence"],
                language=defaults.language or language_code(values["locale"]),
                speaker=values.get("client_id") or UNKNOWN_SPEAKER,
                split=split,
            )
