"""Do speech and text of the same utterance lie together in the model? (paper: speech-text similarity)

Each utterance i goes through the model twice: as speech that is to be transcribed (s_i), and as text that is
to be read aloud (t_i). The vectors are one layer's states, mean over the units or the tokens of the text,
without the prompt around them. The paper gives a percentage and no formula. Here

    similarity  = mean_i cos(s_i, t_i)                               (the headline: a plain cosine)
    mismatched  = mean_{i != j} cos(s_i, t_j)                        (what unrelated pairs reach: its zero)
    centered    = mean_i cos(s_i - mean s, t_i - mean t)             (without what all vectors share)
    retrieval   = share of i whose nearest t_j by cosine has the text of i, and the same from text to speech

The layer is the middle one, whatever the model: near its input a model knows units and letters apart, near its
output it thinks of what comes next; what is said lies between, and training asks for it there
(cslm.training.loss).

Hidden states of language models fill a narrow cone, so that a plain cosine is high for unrelated pairs as
well: read it beside `mismatched`, and trust the retrieval accuracy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.floating]
ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class Similarity:
    """Figures of the module's docstring over `n` pairs; `mismatched` is None for a single pair."""

    similarity: float
    centered: float
    mismatched: float | None
    speech_to_text: float
    text_to_speech: float
    n: int

    @property
    def retrieval_accuracy(self) -> float:
        """Mean of both directions."""
        return (self.speech_to_text + self.text_to_speech) / 2


def compare(speech: Vectors, text: Vectors, texts: Sequence[str]) -> Similarity:
    """Similarity of paired vectors, (n, d) each, whose utterances say `texts`.

    Raises:
        ValueError: no pairs, or the three are not equally long.
    """
    if not len(speech) or not len(speech) == len(text) == len(texts):
        raise ValueError(f"equally many pairs are needed, got {len(speech)}, {len(text)} and {len(texts)}")
    s_nd, t_nd = _unit_length(speech), _unit_length(text)
    parallel = np.einsum("nd,nd->n", s_nd, t_nd)
    n = len(parallel)
    everything = float(s_nd.sum(0) @ t_nd.sum(0))  # sum over all (i, j) of cos(s_i, t_j)
    return Similarity(
        similarity=float(parallel.mean()),
        centered=float(np.einsum("nd,nd->n", _centered(speech), _centered(text)).mean()),
        mismatched=(everything - float(parallel.sum())) / (n * (n - 1)) if n > 1 else None,
        speech_to_text=_retrieval(s_nd, t_nd, texts),
        text_to_speech=_retrieval(t_nd, s_nd, texts),
        n=n,
    )


def _unit_length(vectors: Vectors) -> Vectors:
    vectors = np.asarray(vectors, np.float64)
    lengths: Vectors = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.maximum(lengths, 1e-12)


def _centered(vectors: Vectors) -> Vectors:
    return _unit_length(np.asarray(vectors, np.float64) - np.mean(vectors, axis=0, dtype=np.float64))


def _retrieval(queries: Vectors, candidates: Vectors, texts: Sequence[str]) -> float:
    hits = 0
    for first in range(0, len(queries), ROWS_AT_ONCE):  # (rows, n) at once
        nearest = (queries[first : first + ROWS_AT_ONCE] @ candidates.T).argmax(1)
        hits += sum(texts[first + row] == texts[found] for row, found in enumerate(nearest.tolist()))
    return hits / len(queries)
