"""Generation of text and units with a trained model: streamed, one at a time, or in batches.

Greedy unless a `Sampling` is given: evaluation has to give the same numbers again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.logits_process import TopPLogitsWarper

from cslm.grammar import Grammar, Pick, Reply, greedy
from cslm.growing import growing_cache
from cslm.sequences import IGNORE, Sequence, SequenceBuilder
from cslm.stepping import begin

SAMPLE_LENGTH = 512
"""`compose.length` of the sample profile, for checkpoints that do not say what theirs was."""
LOGITS_AT_ONCE = 512
"""Tokens whose logits over the whole vocabulary are in memory at the same time: 270 MB for 132,000 tokens."""


@dataclass(frozen=True)
class Sampling:
    """Draw the next token from the most probable ones (nucleus sampling); the paper's values (section 4)."""

    top_p: float = 0.7
    """The most probable tokens that together have this probability may be drawn."""
    temperature: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p {self.top_p} is not allowed; give more than 0 and at most 1")
        if self.temperature <= 0:
            raise ValueError(f"temperature {self.temperature} is not allowed; give more than 0")

    def pick(self) -> Pick:
        """A way to draw that starts at the seed."""
        generator = torch.Generator().manual_seed(self.seed)
        nucleus = TopPLogitsWarper(self.top_p)

        def draw(scores: Tensor) -> Tensor:
            kept = nucleus(None, scores.float() / self.temperature)
            return torch.multinomial(kept.softmax(-1).cpu(), 1, generator=generator)[:, 0]

        return draw


class SpeechLanguageModel:
    """A CSLM checkpoint, opened for inference."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model: Any = model.eval()  # type: ignore[no-untyped-call]
        self.tokenizer = tokenizer
        self.builder = SequenceBuilder(tokenizer)
        self._grammar = Grammar(self.builder, model.config.vocab_size)
        # The templates are encoded now: a tokenizer that two threads use must not change what it splits.
        self.builder.next_turn([[]], [])

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Open a Hugging Face checkpoint with its tokenizer, on the GPU if there is one.

        Raises:
            FileNotFoundError: there is none in the folder.
        """
        if not (folder / "config.json").is_file():  # the library would look for it on the network
            raise FileNotFoundError(f"no language model in {folder}: it has no config.json")
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return cls(model.to(device), AutoTokenizer.from_pretrained(folder))

    @property
    def longest(self) -> int:
        """Tokens of the rows that the model was trained on: of what is longer it has learnt nothing."""
        return int(self.model.generation_config.max_length or SAMPLE_LENGTH)

    @torch.inference_mode()
    def generate(
        self,
        prompts: list[list[int]],
        reply: Reply,
        max_new_tokens: int,
        batch_size: int,
        on_batch: Callable[[int], None] | None = None,
    ) -> list[list[int]]:
        """New tokens of each prompt, without the end token; `on_batch(done)` after each batch.

        `reply` says what may be generated (cslm.grammar); a reply of `max_new_tokens` may be cut off anywhere.
        Prompts are taken in order of length, padded on the left; rows that have ended leave the batch, so
        a long answer does not make the others wait.
        """
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        answers: list[list[int]] = [[] for _ in prompts]
        for first in range(0, len(order), batch_size):
            group = order[first : first + batch_size]
            for i, ids in zip(
                group, self._batch([prompts[i] for i in group], reply, max_new_tokens), strict=True
            ):
                answers[i] = ids
            if on_batch:
                on_batch(first + len(group))
        return answers

    def _batch(self, prompts: list[list[int]], reply: Reply, max_new_tokens: int) -> list[list[int]]:
        longest = max(map(len, prompts))
        pad = [longest - len(prompt) for prompt in prompts]
        ids = self._there([[self.builder.end_id] * p + each for p, each in zip(pad, prompts, strict=True)])
        mask = self._there([[0] * p + [1] * (longest - p) for p in pad])
        positions = (mask.cumsum(-1) - 1).clamp_min(0)
        cache = growing_cache()
        rows = list(range(len(prompts)))
        grown = [self._grammar.begin(reply, prompt) for prompt in prompts]
        answers: list[list[int]] = [[] for _ in prompts]
        for _ in range(max_new_tokens):
            logits = self.model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits
            chosen = self._grammar.choose(logits[:, -1], grown, greedy)
            alive = [i for i, token in enumerate(chosen) if token != self.builder.end_id]
            for i in alive:
                answers[rows[i]].append(chosen[i])
            if not alive:
                break
            if len(alive) < len(rows):
                rows, grown = [rows[i] for i in alive], [grown[i] for i in alive]
                cache.batch_select_indices(self._there(alive))
                mask, positions = mask[alive], positions[alive]
            ids = self._there([[chosen[i]] for i in alive])
            mask = torch.cat([mask, torch.ones_like(ids)], -1)
            positions = positions[:, -1:] + 1
        return answers

    @torch.inference_mode()
    def stream(
        self, prompt: list[int], reply: Reply, max_new_tokens: int, sampling: Sampling | None = None
    ) -> Iterator[int]:
        """Tokens of one answer, each as soon as it is known, without the end token."""
        pick = sampling.pick() if sampling else greedy
        grown = [self._grammar.begin(reply, prompt)]
        scores, step = begin(self.model, prompt, max_new_tokens)
        for count in range(1, max_new_tokens + 1):
            [token] = self._grammar.choose(scores, grown, pick)
            if token == self.builder.end_id:
                return
            yield token
            if count < max_new_tokens:
                scores = step(token)

    @torch.inference_mode()
    def mean_hidden(self, sequences: list[tuple[list[int], slice]], batch_size: int) -> npt.NDArray[np.float32]:
        """States of every layer, mean over a slice of each sequence: (layers + 1, n, hidden), input first."""
        rows: list[Tensor] = []
        for first in range(0, len(sequences), batch_size):
            group = sequences[first : first + batch_size]
            ids, mask = self._pad([tokens for tokens, _ in group])
            part = torch.zeros_like(mask)
            for row, (_, where) in enumerate(group):
                part[row, where] = 1
            states = self.model.model(
                input_ids=ids, attention_mask=mask, use_cache=False, output_hidden_states=True
            ).hidden_states
            layers = [(state * part[..., None]).sum(1) / part.sum(1, keepdim=True) for state in states]
            rows.append(torch.stack(layers))
        return torch.cat(rows, 1).float().cpu().numpy()

    @torch.inference_mode()
    def token_losses(self, sequences: list[Sequence], batch_size: int) -> list[tuple[float, int]]:
        """Sum of -log p over the labelled tokens of each sequence, and their number.

        Only tokens in front of a label get logits, `LOGITS_AT_ONCE` at a time. Logits are what the output
        embeddings make of the last states, as in Llama and Qwen, which neither scale nor cap them. A model
        that does would need it here too.
        """
        head = self.model.get_output_embeddings()
        out: list[tuple[float, int]] = []
        for first in range(0, len(sequences), batch_size):
            group = sequences[first : first + batch_size]
            ids, mask = self._pad([sequence.input_ids for sequence in group])
            labels = torch.full_like(ids, IGNORE)
            for row, sequence in enumerate(group):
                labels[row, : len(sequence.labels)] = torch.tensor(sequence.labels)
            states = self.model.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
            targets = labels[:, 1:]  # of the states in front of them
            labelled = targets != IGNORE
            losses = torch.zeros(targets.shape, device=ids.device)
            for places in torch.split(labelled.nonzero(), LOGITS_AT_ONCE):
                rows, columns = places.unbind(1)
                logits = head(states[rows, columns]).float()  # (places, V)
                losses[rows, columns] = F.cross_entropy(logits, targets[rows, columns], reduction="none")
            out += list(zip(losses.sum(1).tolist(), labelled.sum(1).tolist(), strict=True))
        return out

    def _pad(self, sequences: list[list[int]]) -> tuple[Tensor, Tensor]:
        """Right-padded ids and mask, (B, longest) each."""
        longest = max(map(len, sequences))
        pad = self.builder.end_id
        ids = self._there([row + [pad] * (longest - len(row)) for row in sequences])
        mask = self._there([[1] * len(row) + [0] * (longest - len(row)) for row in sequences])
        return ids, mask

    def _there(self, numbers: list[int] | list[list[int]]) -> Tensor:
        """A tensor where the model is."""
        return torch.tensor(numbers, device=self.model.device)
