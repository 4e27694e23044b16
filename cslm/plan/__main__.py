"""How much data, how long, how much memory, how much money: before a training is started.

Run:  python -m cslm.plan --profile llama3.1-8b --gpus 24 --gpu h100

Prints what each phase costs, what each ZeRO stage needs of a GPU, what has to be stored, and all that this
assumes. Of the project it reads params.yaml and the profile; nothing is started or measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, TypeVar

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.padding import Padding
from rich.table import Table

from cslm.plan.costs import ASSUMPTIONS, TOKENIZED, Training, parameters, storage, training
from cslm.plan.memory import STAGES, Memory, memory
from cslm.plan.profiles import DEVICES, PROFILES, Device, Profile

T = TypeVar("T")

AGAIN = " with gradient checkpointing"
KEPT_FREE = 0.1
"""Share of a GPU's memory for CUDA, NCCL and gaps between tensors."""
MEMORY_ASSUMPTIONS = (
    "memory: worst moment of a step with AdamW, as counted in cslm/plan/memory.py; every token has a loss, so "
    "logits are an upper limit. Measured on a processor in 32 bits, on no GPU; "
    f"{KEPT_FREE:.0%} of a GPU stays free for CUDA, NCCL and gaps",
    "attention: a kernel that keeps no scores and stays inside documents (flash attention). What transformers "
    "takes on a GPU unless attn_implementation says so is a mask over all tokens of a micro batch: that is "
    "slower and keeps more",
)


def main(
    profile: Annotated[str, typer.Option(help=f"one of {', '.join(PROFILES)}")] = "llama3.1-8b",
    gpus: Annotated[int, typer.Option(min=1, help="how many")] = 24,
    gpu: Annotated[str, typer.Option(help=f"one of {', '.join(DEVICES)}")] = "h100",
    price: Annotated[float | None, typer.Option(min=0, help="USD for an hour of one GPU")] = None,
    utilisation: Annotated[float | None, typer.Option(min=0.01, max=1, help="share of its peak")] = None,
) -> None:
    """Plan a training: parameters, memory by ZeRO stage, hours, money and storage."""
    plan, device = _named(PROFILES, profile, "profile"), _named(DEVICES, gpu, "gpu")
    device = replace(
        device,
        usd_per_hour=device.usd_per_hour if price is None else price,
        utilisation=utilisation or device.utilisation,
    )
    costs = {
        again: [training(plan, phase, device, gpus, again) for phase in plan.phases] for again in (False, True)
    }
    busiest = max(costs[False], key=lambda each: each.micro_tokens)
    needs = _needs(plan, device, busiest)
    console = Console(highlight=False)
    console.print(
        f"[bold]{profile} on {gpus} x {gpu}[/]: {device.memory_gb:g} GB each, {device.utilisation:.0%} of "
        f"{device.peak_flops / 1e12:,.0f} Tflop/s used, {device.usd_per_hour:.2f} USD an hour\n"
    )
    console.print(_model(plan))
    for again in costs:
        console.print(_hours(plan, costs[again], again))
    for again in costs:
        console.print(_memory(needs, device, busiest.micro_tokens, again))
    console.print(
        f"Memory of {busiest.micro_tokens:,} tokens at once on each of {busiest.gpus}, and how many would fit. "
        "The peak has gradients, or activations and what is summed before them; with those, logits or the "
        "layer that backward is in.\n"
    )
    console.print(_data(plan, device, gpus))
    console.print(_verdict(needs, plan, device, gpus, costs))
    console.print("\n[bold]Assumed[/]")
    for line in (*plan.sources, f"{gpu}: {device.source}", *MEMORY_ASSUMPTIONS, *ASSUMPTIONS):
        console.print(Padding("- " + line, (0, 0, 0, 2)))


def _named(table: Mapping[str, T], name: str, option: str) -> T:
    if name not in table:
        raise SystemExit(f"--{option} {name}: there is no such {option}; there are {', '.join(table)}")
    return table[name]


def _model(plan: Profile) -> str:
    config = plan.config
    count, _ = parameters(config)
    tied = "shared with the output" if config.tie_word_embeddings else "and an output layer of its own"
    return (
        f"model: {count:,} parameters ({config.num_hidden_layers} layers of {config.hidden_size}, "
        f"{config.vocab_size:,} tokens {tied})\n"
    )


def _hours(plan: Profile, costs: list[Training], again: bool) -> Table:
    table = _table("phase", "GPUs", "tokens", "steps", "micro batches", "FLOPs", "GPU time", "takes", "USD")
    table.title = f"Time{AGAIN if again else ''}"
    for phase, each in zip(plan.phases, costs, strict=True):
        table.add_row(
            phase.name,
            f"{each.gpus}",
            f"{each.tokens / 1e6:,.3g} M" if each.tokens < 1e9 else f"{each.tokens / 1e9:.3g} B",
            f"{each.steps:,}",
            f"{each.micro_batches} x {each.micro_tokens:,}",
            f"{each.flops:.2g}",
            _time(each.gpu_hours),
            _time(each.hours),
            f"{each.usd:,.0f}",
        )
    return table


def _needs(plan: Profile, device: Device, busiest: Training) -> dict[tuple[int, bool], Memory]:
    config = plan.config
    count, _ = parameters(config)
    tokens = busiest.micro_tokens
    return {
        (stage, again): memory(
            config,
            count,
            tokens=tokens,
            labelled=tokens,
            ranks=busiest.gpus,
            stage=stage,
            half=device.half,
            checkpointing=again,
            micro_batches=busiest.micro_batches,
        )
        for again in (False, True)
        for stage in (STAGES if busiest.gpus > 1 else STAGES[:3])  # ZeRO 3 needs someone to share with
    }


def _memory(needs: Mapping[tuple[int, bool], Memory], device: Device, tokens: int, again: bool) -> Table:
    parts = ("weights", "optimizer", "gradients", "summed", "activations", "logits", "layer", "buffers", "peak")
    stages = [stage for stage, remade in needs if remade is again]
    table = _table("", *(f"ZeRO {stage}" for stage in stages))
    table.title = f"Memory of one GPU{AGAIN if again else ''}"
    shown = [needs[stage, again] for stage in stages]
    for part in parts:
        table.add_row(part, *(_size(getattr(need, part)) for need in shown))
    table.add_row("fits", *("yes" if _fits(need, device) else "[red]no[/]" for need in shown))
    table.add_row("most tokens", *(f"{_most_tokens(need, device, tokens):,}" for need in shown))
    return table


def _room(device: Device) -> float:
    return device.memory_gb * 1e9 * (1 - KEPT_FREE)


def _fits(need: Memory, device: Device) -> bool:
    return need.peak <= _room(device)


def _most_tokens(need: Memory, device: Device, tokens: int) -> int:
    left = _room(device) - need.weights - need.optimizer - need.buffers
    if left < max(need.gradients, need.summed):
        return 0
    return int(tokens * (left - need.summed) / (need.activations + max(need.logits, need.layer)))


def _data(plan: Profile, device: Device, gpus: int) -> Table:
    table = _table("data", "takes", "USD", "storage")
    busy = plan.hours / TOKENIZED
    speech = f"{plan.hours:,.0f}" if plan.hours >= 100 else f"{plan.hours:.3g}"
    table.add_row(
        f"tokenise {speech} h of speech", _time(busy / gpus), f"{busy * device.usd_per_hour:,.0f}", ""
    )
    held = storage(plan, device.half)
    for name, size in held.items():
        table.add_row(name, "", "", _size(size))
    table.add_row("storage together", "", "", _size(sum(held.values())))
    return table


def _verdict(
    needs: Mapping[tuple[int, bool], Memory],
    plan: Profile,
    device: Device,
    gpus: int,
    costs: Mapping[bool, list[Training]],
) -> str:
    """Which stages fit, and the whole: as the profile has it, or with what makes it fit."""
    fits = {again: [f"{s}" for s, a in needs if a is again and _fits(needs[s, a], device)] for again in costs}
    if not any(fits.values()):
        return "[bold red]Nothing fits.[/] More GPUs, GPUs of more memory, or smaller micro batches are needed."
    again = any(phase.gradient_checkpointing for phase in plan.phases) or not fits[False]
    hours = plan.hours / TOKENIZED / gpus + sum(each.hours for each in costs[again])
    usd = plan.hours / TOKENIZED * device.usd_per_hour + sum(each.usd for each in costs[again])
    whole, remade = (", ".join(fits[a]) or "none" for a in (False, True))
    return (
        f"[bold]Fits:[/] ZeRO {whole}; with gradient checkpointing ZeRO {remade}.\n"
        f"[bold]Tokenisation and both phases, not the other stages:[/] {_time(hours)} and "
        f"{usd:,.0f} USD{AGAIN if again else ''}."
    )


def _table(first: str, *others: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, title_justify="left", collapse_padding=True)
    table.add_column(first, no_wrap=True)
    for name in others:
        table.add_column(name, justify="right")
    return table


def _size(size: float) -> str:
    for unit, name in ((1e12, "TB"), (1e9, "GB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}" if size < 1e3 * unit else f"{size / unit:,.0f} {name}"
    return f"{size / 1e6:.3g} MB" if size else "0"


def _time(hours: float) -> str:
    return f"{hours:,.1f} h" if hours >= 1 else f"{60 * hours:.1f} min"


if __name__ == "__main__":
    typer.run(main)
