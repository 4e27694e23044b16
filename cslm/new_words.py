"""Whole words for a tokenizer that has to spell them: a language that is added.

A small model learns to hear and to copy words whole (cslm.text_model). The words get tokens behind all others
and merges behind all others, so every token keeps its number, and a text that needed no spelling before is
read as it was.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tokenizers import AddedToken, models
from transformers import AutoTokenizer, PreTrainedTokenizerBase

FILE = "tokenizer.json"


def add_words(
    tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], most: int, phrases: Sequence[str] = ()
) -> PreTrainedTokenizerBase:
    """The tokenizer with a token for each phrase, and for the `most` frequent words of `texts` that it spells.

    Raises:
        ValueError: its model is not byte-pair encoding.
    """
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    if content["model"]["type"] != "BPE":
        raise ValueError(f"words can be added to byte-pair encoding only, not to {content['model']['type']}")
    vocabulary: dict[str, int] = content["model"]["vocab"]
    # Tokens that were added later have no place of their own: they are numbered on behind the vocabulary.
    vocabulary |= {token["content"]: token["id"] for token in content["added_tokens"]}
    merges: list[Any] = content["model"]["merges"]
    model = _model(vocabulary, merges)
    spelled = [word for word, _ in _words(tokenizer, texts).most_common() if len(model.tokenize(word)) > 1]
    for word in spelled[:most]:
        merges += _spell(word, _model(vocabulary, merges), vocabulary)
    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        (Path(folder) / FILE).write_text(json.dumps(content, ensure_ascii=False), "utf-8")
        extended: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    known = extended.get_vocab()
    extended.add_tokens([AddedToken(phrase, normalized=False) for phrase in phrases if phrase not in known])
    return extended


def _words(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> Counter[str]:
    """What the tokenizer cuts texts into before it spells, with the number of times."""
    backend = tokenizer.backend_tokenizer
    normal = backend.normalizer.normalize_str if backend.normalizer else str
    return Counter(word for text in texts for word, _ in backend.pre_tokenizer.pre_tokenize_str(normal(text)))


def _spell(word: str, model: models.BPE, vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """Merges, from the left, that make one token of the pieces of a word; the tokens go into the vocabulary."""
    begun, *rest = [token.value for token in model.tokenize(word)]
    merges = []
    for piece in rest:
        merges.append((begun, piece))
        begun += piece
        vocabulary.setdefault(begun, len(vocabulary))
    return merges


def _model(vocabulary: dict[str, int], merges: Sequence[Any]) -> models.BPE:
    return models.BPE(vocabulary, [tuple(merge) for merge in merges])
