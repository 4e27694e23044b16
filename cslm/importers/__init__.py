"""Corpora in the wild, read as one stream of utterances: `IMPORTERS[format](root, defaults)`.

`TEXTS[format][table](root, defaults, prefix)` streams what a format has of written dialogues and translations.

An importer is a generator of `Found` (an utterance, its audio not yet decoded) and `Refused` (a row that
is unusable, and why). It holds one row at a time, whatever the size of the corpus, opens nothing outside
of `root`, and unpickles nothing. It raises `BadCorpus` if the folder is not of its format at all.
docs/corpora.md draws each layout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from cslm.importers import (
    aishell,
    aishell2,
    aishell3,
    common_voice,
    huggingface,
    lhotse_cuts,
    librispeech,
    libritts,
    mls,
    shards,
    tsv,
    vctk,
    written,
)
from cslm.importers.found import BadCorpus, Defaults, Found, Refused

Importer = Callable[[Path, Defaults], Iterator[Found | Refused]]
TextImporter = Callable[[Path, Defaults, str], Iterator[dict[str, str] | Refused]]

IMPORTERS: Mapping[str, Importer] = {
    "shards": shards.read,
    "tsv": tsv.read,
    "librispeech": librispeech.read,
    "libritts": libritts.read,
    "mls": mls.read,
    "vctk": vctk.read,
    "aishell": aishell.read,
    "aishell2": aishell2.read,
    "aishell3": aishell3.read,
    "common_voice": common_voice.read,
    "lhotse": lhotse_cuts.read,
    "huggingface": huggingface.read,
    "written": written.read,
}
TEXTS: Mapping[str, Mapping[str, TextImporter]] = {
    "written": {"dialogues": written.dialogues, "translations": written.translations},
}

__all__ = ["IMPORTERS", "TEXTS", "BadCorpus", "Defaults", "Found", "Importer", "Refused", "TextImporter"]
