"""variants.yaml: what is compared, and what the paper claims."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field

from components.settings import Name

PATH = Path(__file__).with_name("variants.yaml")


class Variant(BaseModel):
    """One training run: a short title, and parameters that differ from the profile's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str
    overrides: dict[str, Any] = Field(alias="set")

    @property
    def chain(self) -> str:
        """The chain that it answers in, as the figures of latency name it."""
        return "full_chain" if self.overrides.get("evaluate.chain") == "full" else "interleaved"


class Claim(BaseModel):
    """What the paper says, and the figures that must be worse in a variant if it is so."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    says: str
    variant: Name
    figures: list[str]


class Study(BaseModel):
    """The whole of variants.yaml; the first variant is the one that the others are compared with."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    profile: Name
    experiment: str
    variants: dict[Name, Variant]
    claims: list[Claim]


def load_study() -> Study:
    """Read variants.yaml."""
    return Study.model_validate(yaml.safe_load(PATH.read_text("utf-8")))
