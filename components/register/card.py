"""The model card of a version: what it was trained on, how good it is, and what it is not good for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from components.evaluate.figures import headlines
from components.evaluate.speech import JUDGES
from components.fetch.catalog import Model
from components.register.result import figures_table
from components.settings import Settings
from cslm.prompts import LANGUAGE_NAMES

BASES = {
    "train_tokenizer": "speech tokenizer",
    "train_decoder": "speech decoder",
    "text_model": "text model",
    "backbone": "language model",
}
"""Section of params.yaml whose `checkpoint` this version continues from -> what that is."""
ORIGIN = ("git_commit", "data_version", "pipeline_run", "profile")


def model_card(
    settings: Settings,
    tags: Mapping[str, str],
    evaluation: Mapping[str, Any],
    hours: Mapping[str, float],
    catalog: Mapping[str, Model],
) -> str:
    """Markdown. `hours` of accepted speech by language; `catalog` is models.yaml."""
    digests = dict(part.split("=", 1) for part in tags.get("data_version", "").split(", ") if "=" in part)
    corpora = [
        {"name": key, "format": corpus.format, "digest": digests.get(key), "license": corpus.license}
        for key, corpus in settings.corpora.items()
    ]
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=False, undefined=StrictUndefined
    )
    return environment.get_template("card.md.jinja").render(
        name=settings.register_.model,
        languages=" and ".join(map(_named, settings.languages)),
        corpora=corpora,
        hours=", ".join(f"{_named(language)} {amount:.2f} h" for language, amount in hours.items()),
        figures=figures_table(evaluation),
        misses=list(_misses(evaluation)),
        bases=list(_bases(settings, catalog)),
        judges={name: catalog[name] for name in JUDGES if name in catalog} if "dnsmos" in evaluation else {},
        origin={key: tags[key] for key in ORIGIN if key in tags},
    )


def _bases(settings: Settings, catalog: Mapping[str, Model]) -> Iterable[tuple[str, str, str]]:
    """Part, checkpoint and licence of each base, as models.yaml or the checkpoint's `.dvc` file has them."""
    for section, part in BASES.items():
        checkpoint = getattr(settings, section).checkpoint
        if checkpoint is None:
            continue
        if known := catalog.get(Path(checkpoint).name):
            yield part, checkpoint, known.license
            continue
        pointer = Path(f"{checkpoint.rstrip('/')}.dvc")
        out = yaml.safe_load(pointer.read_text("utf-8"))["outs"][0] if pointer.exists() else {}
        made = f"{checkpoint}, {out['desc']}" if "desc" in out else checkpoint
        yield part, made, out.get("meta", {}).get("license", "not stated")


def _misses(evaluation: Mapping[str, Any]) -> Iterable[str]:
    for figure in headlines(evaluation):
        if figure.reached is False:
            yield f"{figure.name} is {figure.value:.4g}, wanted {figure.target:.4g}"


def _named(language: str) -> str:
    return LANGUAGE_NAMES.get(language, language)
