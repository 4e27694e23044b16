"""Voices and the speakers of corpora."""

from __future__ import annotations

import pytest

from cslm.decoder.voices import new_voices, voice_for


@pytest.mark.parametrize(
    ("speakers", "known", "expected"),
    [
        ([("wei", "zh"), ("ann", "en")], {}, {"ann": "en", "wei": "zh"}),
        ([("ann", "zh"), ("ann", "en")], {}, {"ann": "en", "ann-zh": "zh"}),
        ([("unknown", "zh"), ("unknown", "en")], {}, {"unknown-en": "en", "unknown-zh": "zh"}),
        ([("ann", "en"), ("bob", "en")], {"ann": "en"}, {"bob": "en"}),
        ([("ann", "en"), ("ann", "zh")], {"ann": "zh"}, {"ann-en": "en"}),
        ([("ann", "en")], {"ann": "zh", "ann-en": "en"}, {}),
    ],
)
def test_each_speaker_has_a_voice_in_each_language(
    speakers: list[tuple[str, str]], known: dict[str, str], expected: dict[str, str]
) -> None:
    added = new_voices(speakers, known)
    assert added == expected
    whole = known | added
    assert all(whole[voice_for(*each, whole) or ""] == each[1] for each in speakers), "and finds it again"


def test_who_has_no_voice_in_a_language_keeps_that_of_another_one() -> None:
    assert voice_for("ann", "zh", {"ann": "en"}) == "ann"
    assert voice_for("unknown", "en", {"unknown": "en"}) == "unknown", "by decoders of before"
    assert voice_for("bob", "en", {"ann": "en"}) is None
