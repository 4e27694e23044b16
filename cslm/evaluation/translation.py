"""BLEU of translations, with sacrebleu (Post 2018), on its scale of 0 to 100."""

from __future__ import annotations

from collections.abc import Sequence

import sacrebleu

from cslm.evaluation.normalization import LanguageRules

CHINESE = ("zh", "yue")


def bleu(translations: Sequence[str], references: Sequence[str], rules: LanguageRules) -> float:
    """Corpus BLEU in the target language of `rules`, over sacrebleu's `zh` tokens, `13a` words or characters.

    Raises:
        ValueError: no translations, or not one reference for each.
    """
    if not translations or len(translations) != len(references):
        raise ValueError(f"BLEU needs pairs, got {len(translations)} and {len(references)} texts")
    tokenizer = "zh" if rules.language in CHINESE else "char" if rules.by_character else "13a"
    return sacrebleu.corpus_bleu(list(translations), [list(references)], tokenize=tokenizer).score
