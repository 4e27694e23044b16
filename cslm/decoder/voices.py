"""Which voice speaks for a speaker of a corpus.

A voice has the name of its speaker. In a second language the speaker has another voice, `NAME-LANGUAGE`, as
have those whom no corpus names: they are one voice in each language.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from cslm.shards import UNKNOWN_SPEAKER


def new_voices(speakers: Iterable[tuple[str, str]], known: Mapping[str, str]) -> dict[str, str]:
    """Name -> language of the voices that are still to be learnt.

    Args:
        speakers: each speaker with a language that is spoken.
        known: name -> language of the voices that are there.
    """
    voices = dict(known)
    for speaker, language in sorted(speakers):
        name = speaker if speaker != UNKNOWN_SPEAKER else f"{speaker}-{language}"
        if voices.setdefault(name, language) != language:
            voices.setdefault(f"{speaker}-{language}", language)
    return {name: language for name, language in voices.items() if name not in known}


def voice_for(speaker: str, language: str, known: Mapping[str, str]) -> str | None:
    """Name of the voice that is a speaker's in a language, or speaks another one; None if there is neither."""
    return next((name for name in (f"{speaker}-{language}", speaker) if name in known), None)
