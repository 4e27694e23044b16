"""Words of a language that is added: one token each, and nothing else changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from cslm.new_words import add_words
from cslm.prompts import prompts
from cslm.sequences import SequenceBuilder
from cslm.vocabulary import extend
from tests import tiny

SPANISH = ["¿Cuál es la capital de Francia?", "La capital de Francia es París.", "¿Y la de España?"]


@pytest.fixture(scope="module")
def known() -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    return tiny.make()


def test_each_new_word_is_a_token_and_old_texts_are_read_as_before(
    known: tuple[LlamaForCausalLM, PreTrainedTokenizerFast], tmp_path: Path
) -> None:
    before = known[1]
    after = add_words(before, SPANISH, 1000, prompts(["en", "zh", "es"]))
    after.save_pretrained(tmp_path)
    for tokenizer in (after, AutoTokenizer.from_pretrained(tmp_path)):
        assert len(tokenizer.tokenize("La capital de Francia es París.")) == 7
        assert tokenizer.decode(tokenizer.encode(SPANISH[0], add_special_tokens=False)) == SPANISH[0]
        for text in (*tiny.TEXTS, "Ünïcode\n\t 鱻 🎧", *prompts(["en", "zh"])):
            assert tokenizer.encode(text) == before.encode(text)
        assert SequenceBuilder(tokenizer).unit_ids == SequenceBuilder(before).unit_ids
        assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))
    translate = "Please translate the text to Spanish. This is input: "
    assert (len(before.tokenize(translate)) > 1, len(after.tokenize(translate))) == (True, 1)


def test_the_most_frequent_words_come_first(known: tuple[LlamaForCausalLM, PreTrainedTokenizerFast]) -> None:
    texts = ["perro gato", " gato", " gato gato"]
    few = add_words(known[1], texts, 1)
    assert len(few.tokenize("el gato")) < len(known[1].tokenize("el gato"))
    assert few.tokenize("x perro") == known[1].tokenize("x perro")


def test_old_tokens_keep_their_logits() -> None:
    model, tokenizer = tiny.make()
    prompt = torch.tensor([tokenizer.encode(tiny.TEXTS[0])])
    with torch.inference_mode():
        before = model(prompt).logits
        old = len(tokenizer)
        more = add_words(tokenizer, SPANISH, 1000)
        assert extend(model, more, tiny.UNITS, seed=1, known=old) == len(more) - old > 0
        after = model(prompt).logits
    assert after.shape[-1] == len(more)
    torch.testing.assert_close(after[..., :old], before)


def test_only_byte_pair_encoding_can_be_added_to() -> None:
    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
    with pytest.raises(ValueError, match="byte-pair encoding only, not to WordLevel"):
        add_words(words, ["a"], 1)
