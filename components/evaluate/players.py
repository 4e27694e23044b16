"""Sounds of the report, inside the page."""

from __future__ import annotations

import base64

from markupsafe import Markup

from cslm.audio import Samples, encode_opus


def player(samples: Samples) -> Markup:
    """An HTML audio element that carries its sound (Ogg Opus) with it."""
    source = base64.b64encode(encode_opus(samples)).decode()
    return Markup('<audio controls preload="none" src="data:audio/ogg;base64,{}"></audio>').format(source)
