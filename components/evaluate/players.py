"""Sounds of the report, inside the page."""

from __future__ import annotations

import base64

from markupsafe import Markup

from cslm.audio import Samples, encode_opus


def player(samples: Samples, label: str) -> Markup:
    """An HTML audio element that carries its sound (Ogg Opus) with it; `label` says what one would hear."""
    source = base64.b64encode(encode_opus(samples)).decode()
    audio = Markup('<audio controls preload="none" aria-label="{}" src="data:audio/ogg;base64,{}"></audio>')
    return audio.format(label, source)
