"""The best CTC path against all paths, and chunks that lose nothing."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cslm.alignment import BLANK, CannotAlign, Span, align, best_path
from cslm.chunks import cut_text, cut_units, spoken_characters, spoken_words, words
from cslm.pronunciation import labels


def collapse(path: tuple[int, ...]) -> list[int]:
    return [label for label, _ in itertools.groupby(path) if label != BLANK]


@given(
    st.integers(1, 6),
    st.lists(st.integers(1, 2), min_size=1, max_size=3),
    st.integers(0, 2**32 - 1),
)
def test_viterbi_finds_the_best_of_all_paths(frames: int, target: list[int], seed: int) -> None:
    log_probs = np.log(np.random.default_rng(seed).dirichlet(np.ones(3), frames))
    paths = [p for p in itertools.product(range(3), repeat=frames) if collapse(p) == target]
    if not paths:
        with pytest.raises(CannotAlign):
            best_path(log_probs, target)
        return
    best = max(log_probs[range(frames), path].sum() for path in paths)
    states = best_path(log_probs, target)
    extended = np.array([target[s // 2] if s % 2 else BLANK for s in states])
    assert collapse(tuple(extended)) == target
    assert log_probs[range(frames), extended].sum() == pytest.approx(best)


@given(st.lists(st.integers(1, 3), min_size=1, max_size=6), st.integers(0, 8), st.integers(0, 2**32 - 1))
def test_spans_cover_all_frames_in_order(target: list[int], extra: int, seed: int) -> None:
    frames = 2 * len(target) + extra
    log_probs = np.log(np.random.default_rng(seed).dirichlet(np.ones(4), frames))
    spans = align(log_probs, target)
    assert [span.first for span in spans] == [0, *(span.last for span in spans[:-1])]
    assert spans[-1].last == frames
    assert all(span.first < span.last for span in spans)


def test_a_label_begins_where_its_probability_peaks() -> None:
    log_probs = np.full((6, 3), np.log(0.05))
    for frame, label in enumerate([0, 1, 0, 0, 2, 0]):
        log_probs[frame, label] = np.log(0.9)
    assert align(log_probs, [1, 2]) == [Span(0, 4), Span(4, 6)]


TEXTS = st.text(st.sampled_from("ab cd'e, .?法国的首都是巴黎，。 "), max_size=60)


@given(TEXTS, st.integers(1, 9))
def test_chunks_of_text_join_to_the_text(text: str, size: int) -> None:
    assert "".join(words(text)) == text
    assert "".join(cut_text(text, size)) == text


@given(TEXTS, st.integers(1, 9), st.data())
def test_chunks_join_to_all_units(text: str, size: int, data: st.DataObject) -> None:
    names = labels(text, "en")
    durations = data.draw(st.lists(st.integers(1, 5), min_size=max(1, len(names)), max_size=80))
    assume(sum(durations) >= 2 * len(names))
    cuts = sorted(data.draw(st.permutations(range(1, sum(durations))))[: max(0, len(names) - 1)])
    spans = [Span(a, b) for a, b in zip([0, *cuts], [*cuts, sum(durations)], strict=True)][: len(names)]
    chunks = cut_units(cut_text(text, size), names, spans, durations)
    assert "".join(chunk.text for chunk in chunks) == text
    if chunks:
        borders = [chunk.first for chunk in chunks] + [chunks[-1].last]
        assert borders == sorted(borders) and borders[0] == 0 and borders[-1] == len(durations)


def test_chunks_are_cut_at_punctuation_and_about_seven_words() -> None:
    english = cut_text("The capital of France is Paris, and many people travel there every year.", 7)
    assert english == ["The capital of France is Paris, ", "and many people travel there every year."]
    mandarin = cut_text("法国的首都是巴黎，每年都有很多人去那里旅游。", 7)
    assert mandarin == ["法国的首都是巴黎，", "每年都有很多人去那里旅游。"]
    long = cut_text("one two three four five six seven eight nine ten eleven twelve", 7)
    assert [len(chunk.split()) for chunk in long] == [6, 6]


def test_a_word_whose_sound_nothing_tells_stays_with_its_neighbour() -> None:
    def joined(text: str) -> list[str]:
        return spoken_words(text, labels(text, "en"))

    assert joined("it is 20 degrees now") == ["it ", "is 20 ", "degrees ", "now"]
    assert joined("20 30 degrees") == ["20 30 degrees"]
    assert joined("3 4") == ["3 4"]


@given(TEXTS)
def test_spoken_words_join_to_the_text_and_all_have_a_label_if_one_has(text: str) -> None:
    names = labels(text, "en")
    joined = spoken_words(text, names)
    assert "".join(joined) == text
    if names:
        assert all(labels(word, "en") for word in joined)


def test_each_unit_speaks_the_character_whose_span_it_begins_in() -> None:
    names = labels("hi 法", "en")  # h, aɪ, f-, a3
    spans = [Span(0, 2), Span(2, 3), Span(3, 7), Span(7, 9)]
    assert spoken_characters(names, spans, [1, 2, 3, 1, 2]) == [0, 0, 3, 3, 3]
