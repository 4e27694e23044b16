"""The loss of packed rows: weighted cross-entropy on the assistant's tokens, and on what is understood of the
user's.

Rows are laid end to end, as positions tell where documents begin, and only labelled tokens get logits.
What the user's units and words mean is read from the middle of the network, not from its end: the layers behind
can then look it up when they write. It is read by cosine to the words' embeddings, which do not move for it: so
speech and text that say the same lie together (`LISTENING_SCALE`, `ALIKE`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from cslm.packing import LISTENING
from cslm.sequences import IGNORE
from cslm.training.attention import borders
from cslm.training.zero import gathered

LISTENING_SCALE = 12.0
"""Cosines times this are logits (NormFace, arXiv 1704.06369): alone they are too close together for a softmax.
The greater it is, the smaller are the cosines that it is content with (benchmarks/log.md)."""
ALIKE = 0.8
"""The state of a word that is read is asked no more once its cosine to its own embedding is this high: the rest
of it is left for the words before."""


class PackedLoss:
    """Sums the weighted losses of rows, and keeps the (unweighted) sum of each task.

    Args:
        speech_tokens: tokens of the `vocabulary` whose loss counts `speech_loss` times.
        tasks: names of the tasks in the order of their numbers, as in `cslm.packing.PackedManifest`.
    """

    def __init__(
        self, vocabulary: int, speech_tokens: Sequence[int], speech_loss: float, tasks: list[str]
    ) -> None:
        self._speech = torch.zeros(vocabulary, dtype=torch.bool)
        self._speech[list(speech_tokens)] = True
        self._weights = torch.where(self._speech, speech_loss, 1.0)
        self._sums = torch.zeros(len(tasks), 2)
        listening = [f"{LISTENING}.{name.rpartition('.')[-1]}" for name in tasks]
        self._listening = torch.tensor([tasks.index(n) if n in tasks else 0 for n in listening])

    def __call__(
        self, model: Any, inputs: Mapping[str, Tensor], network: PreTrainedModel
    ) -> tuple[Tensor, Any]:
        """The weighted sum of the losses of rows (R, L), and the model's outputs.

        Args:
            network: the model without what DeepSpeed has laid around it.
        """
        tokens = inputs["input_ids"].flatten()  # (T,)
        targets = inputs["labels"].flatten().roll(-1)  # a row's first token has no label
        tasks, understood = inputs["task"].flatten().cpu(), inputs["understood"].flatten()
        written = (targets != IGNORE).nonzero().flatten()
        heard = (understood != IGNORE).nonzero().flatten()
        positions = inputs["position_ids"].flatten()[None]
        outputs = model(
            input_ids=tokens[None],
            position_ids=positions,
            use_cache=False,
            output_hidden_states=bool(len(heard)),
            logits_to_keep=written,
            **borders(network.config._attn_implementation, positions),
        )
        logits = outputs.logits[0].float()  # (len(written), V)
        targets = torch.cat([targets[written], understood[heard]])
        weights = self._weights.to(targets.device)[targets]
        asked = torch.ones_like(weights)
        head: Tensor = network.lm_head.weight
        with gathered(head):
            words = F.normalize(head.detach().float(), dim=-1) if len(heard) else None
        if words is not None:
            states = outputs.hidden_states[len(outputs.hidden_states) // 2][0, heard]
            cosines = F.normalize(states.float(), dim=-1) @ words.T
            logits = torch.cat([logits, LISTENING_SCALE * cosines])
            own = cosines.detach().gather(1, understood[heard, None])[:, 0]
            read = ~self._speech.to(tokens.device)[tokens[heard]]
            asked[len(written) :][read & (own > ALIKE)] = 0
        tasks = torch.cat([tasks.roll(-1)[written.cpu()], self._listening[tasks[heard.cpu()]]])
        losses = F.cross_entropy(logits, targets, reduction="none")
        self._sums[:, 0].index_add_(0, tasks, losses.detach().cpu())
        self._sums[:, 1].index_add_(0, tasks, torch.ones(len(tasks)))
        return (losses * weights * asked).sum(), outputs

    def weight(self, batches: Iterable[Mapping[str, Tensor]]) -> Tensor:
        """The sum of the weights of all tokens of these rows that have a loss: what a mean divides by."""
        total = torch.zeros(())
        for batch in batches:
            targets = torch.cat([batch["labels"].flatten(), batch["understood"].flatten()]).cpu()
            total += self._weights[targets[targets != IGNORE]].sum()
        return total

    def take_sums(self) -> Tensor:
        """Of each task, its loss and its tokens since they were taken last (tasks, 2)."""
        sums = self._sums.clone()
        self._sums.zero_()
        return sums
