"""Words change places within a voice, and memory does not grow with the corpus."""

from __future__ import annotations

from collections import Counter

import pytest

from cslm.aligned import AlignedUtterance, Word
from cslm.noise import OPENING
from cslm.sequences import Chunk
from cslm.splicing import LONGEST_EXCERPT, WordBank


def utterance(text: str, speaker: str, first_unit: int) -> AlignedUtterance:
    """Each word is spoken by one unit, numbered from `first_unit`."""
    pieces = text.split(" ")
    texts = [piece + " " * (index < len(pieces) - 1) for index, piece in enumerate(pieces)]
    words = [Word(piece, (first_unit + index,), (0,)) for index, piece in enumerate(texts)]
    units = [unit for word in words for unit in word.units]
    return AlignedUtterance("u", "en", "train", speaker, 1.0, text, units, words, [Chunk(text, tuple(units))])


def test_a_word_gives_way_to_one_that_fits_in_the_same_voice() -> None:
    asked, told, other = (
        utterance("Where is Rome now?", "ann", 10),
        utterance("Here was Paris then?", "ann", 20),
        utterance("There lies Oslo yet?", "bob", 30),
    )
    bank = WordBank([asked, told, other], seed=1)
    seen = Counter("".join(word.text for word in bank.splice(asked, 1.0)) for _ in range(4000))
    words = [["Where ", "Here ", "Rome ", "Paris "], ["is ", "was "], ["Where ", "Here ", "Rome ", "Paris "]]
    expected = {a + b + c + d for a in words[0] for b in words[1] for c in words[2] for d in ("now?", "then?")}
    assert set(seen) == expected
    assert bank.splice(asked, 0.0) == asked.words


def test_utterances_of_unknown_speakers_are_not_taken_for_one_voice() -> None:
    asked, other = (
        utterance("Where is Rome now?", "unknown", 10),
        utterance("Here was Paris then?", "unknown", 20),
    )
    bank = WordBank([asked, other], seed=1)
    assert all(bank.splice(asked, 1.0) == asked.words and bank.opening(asked) == () for _ in range(50))


def test_the_same_word_may_come_from_another_recording_of_the_voice() -> None:
    ann, again, bob = (utterance("is Rome far", *voice) for voice in (("ann", 10), ("ann", 20), ("bob", 30)))
    bank = WordBank([ann, again, bob], seed=1)
    seen = set()
    for _ in range(200):
        words = bank.respeak(ann, 0.5)
        assert [word.text for word in words] == [word.text for word in ann.words]
        seen.add(tuple(unit for word in words for unit in word.units))
    assert seen == {(a, b, c) for a in (10, 20) for b in (11, 21) for c in (12, 22)}


def test_rare_words_are_as_probable_as_frequent_ones() -> None:
    often, once = utterance("red", "ann", 1), utterance("blue", "ann", 2)
    bank = WordBank([*[often] * 99, once], seed=1)
    drawn = Counter(bank.splice(often, 1.0)[0].text for _ in range(1000))
    assert drawn["blue"] == pytest.approx(500, abs=60)


def test_the_bank_holds_a_random_choice_of_at_most_its_size() -> None:
    corpus = [utterance(f"w{number}", "ann", number) for number in range(1000)]
    bank = WordBank(corpus, seed=1, size=100)
    drawn = {bank.splice(corpus[0], 1.0)[0].text for _ in range(5000)}
    assert len(drawn) == 100
    assert sum(int(word[1:]) >= 500 for word in drawn) == pytest.approx(50, abs=20)


def test_excerpts_are_words_in_a_row() -> None:
    whole = utterance("a b c d e f g h", "ann", 0)
    bank = WordBank([whole], seed=1)
    lengths = Counter[int]()
    for _ in range(2000):
        words = bank.excerpt(whole.words)
        first = whole.words.index(words[0])
        assert words == whole.words[first : first + len(words)]
        lengths[len(words)] += 1
    assert set(lengths) == set(range(1, LONGEST_EXCERPT + 1))
    assert lengths[1] > lengths[LONGEST_EXCERPT]
    silent = [Word("a ", (), ()), Word("b", (1,), ("b",))]
    assert all(any(word.units for word in bank.excerpt(silent)) for _ in range(50))


def test_with_many_speakers_it_holds_a_random_choice_of_openings() -> None:
    corpus = [utterance("Where is Rome now?", f"speaker {number}", number) for number in range(1000)]
    bank = WordBank(corpus, seed=1, size=400)
    begun = [number for number, each in enumerate(corpus) if bank.opening(each)]
    assert len(begun) == 400 / OPENING
    assert sum(number >= 500 for number in begun) == pytest.approx(50, abs=20)
