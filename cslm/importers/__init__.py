"""Corpora in the wild, read as one stream of utterances: `IMPORTERS[format](root, defaults)`.

An importer is a generator of `Found` (an utterance, its audio not yet decoded) and `Refused` (a row that
is unusable, and why). It holds one row at a time, whatever the size of the corpus, opens nothing outside
of `root`, and unpickles nothing. It raises `BadCorpus` if the folder is not of its format at all.
docs/corpora.md draws each layout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from cslm.importers import aishell, common_voice, huggingface, lhotse_cuts, librispeech, shards, tsv
from cslm.importers.found import BadCorpus, Defaults, Found, Refused

Importer = Callable[[Path, Defaults], Iterator[Found | Refused]]

IMPORTERS: Mapping[str, Importer] = {
    "shards": shards.read,
    "tsv": tsv.read,
    "librispeech": librispeech.read,
    "aishell": aishell.read,
    "common_voice": common_voice.read,
    "lhotse": lhotse_cuts.read,
    "huggingface": huggingface.read,
}

__all__ = ["IMPORTERS", "BadCorpus", "Defaults", "Found", "Importer", "Refused"]
