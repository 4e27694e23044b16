"""What a run gets that adds a language to a registered version: that version's own parameters, and more."""

from __future__ import annotations

import re
from typing import Any

from dags import continuation, parameters, places, tracking

LANGUAGE = re.compile(r"[a-z]{2,3}")
"""As components/settings.py has it: ISO 639, without script or region."""


class CannotAdd(Exception):
    """The language cannot be added; the message says why and what to do."""


def parameters_with(
    model: str, base: str, language: str, corpora: dict[str, Any]
) -> tuple[int, dict[str, Any]]:
    """Number of the version that is `base` (number or alias), and overrides of a run that adds to it.

    The run has all languages and corpora that the version was trained on (the replay), and the new ones.

    Raises:
        CannotAdd: no such version, the language is known, or the corpora are not given as params.yaml has them.
    """
    version = tracking.registered(model, base)
    if version is None:
        raise CannotAdd(f"{model} has no version {base!r} at {places.tracking_uri()}: train one (cslm_train)")
    known = continuation.parameters_of(version)
    if not LANGUAGE.fullmatch(language):
        raise CannotAdd(f"language {language!r}: two or three small letters are needed, such as es or yue")
    if language in known["languages"]:
        raise CannotAdd(f"version {version.version} speaks {language!r} already; cslm_train goes on with it")
    if not corpora:
        raise CannotAdd(
            f'corpora: at least one of {language!r} is needed, as {{"NAME": {{"format": ..., "path": ...}}}}'
        )
    for name, corpus in corpora.items():
        if name in known["corpora"]:
            raise CannotAdd(
                f"corpora: version {version.version} has a corpus {name!r} already: choose another name"
            )
        if not isinstance(corpus, dict) or not corpus.get("path"):
            raise CannotAdd(
                f"corpora.{name} = {corpus!r}: a mapping with format and path is needed (docs/corpora.md)"
            )
    others = dict.fromkeys(parameters.read(places.PROJECT / "params.yaml")["corpora"])  # null: left out
    return int(version.version), {
        "languages": [*known["languages"], language],
        "corpora": others | known["corpora"] | corpora,
    }
