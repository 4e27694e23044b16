"""Names of the components' images. A name changes when what lies in the image must change.

An image is an environment; its tag is made of the files that define it: the locks of requirements/, the
Dockerfiles, and the programs that bring a stage to its end, all as they are in the checkout.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from dags import places

STAGE_COMMAND = ("/opt/dvc/bin/python", "/opt/cslm/dags/dvc_stage.py")
"""What brings a stage to its end inside an image, in a workspace that is there (dags/dvc_stage.py)."""
REMOTE_COMMAND = ("/opt/dvc/bin/python", "/opt/cslm/dags/remote_stage.py")
"""The same where nothing is shared but a DVC remote (dags/remote_stage.py)."""
PROGRAMS = ("dags/dvc_stage.py", "dags/remote_stage.py")

ENVIRONMENT = (
    "infra/images/environment.Dockerfile",
    "requirements/components.txt",
    "requirements/data.txt",
    "requirements/dvc.txt",
)
"""What defines the environments, torch's and the one without it."""

ORCHESTRATOR = "orchestrator"
"""Image of Airflow, DVC and MLflow's server, which is no component."""


def name(component: str) -> str:
    """Image of a component, or of the orchestrator; CSLM_REGISTRY (registry.example.org/team) goes before it.

    Raises:
        ValueError: the component has no Dockerfile.
    """
    if component == ORCHESTRATOR:
        folder = places.PROJECT / "infra" / "images"
        lock = places.PROJECT / "requirements" / "orchestrator.txt"
        return tagged("cslm-orchestrator", [folder / "orchestrator.Dockerfile", lock])
    dockerfile = places.PROJECT / "components" / component / "Dockerfile"
    if not dockerfile.exists():
        raise ValueError(f"there is no image {component!r}: {dockerfile} is not there")
    return tagged(f"cslm-{component}", [dockerfile, *(places.PROJECT / program for program in PROGRAMS)])


def tagged(image: str, files: list[Path]) -> str:
    """An image's name and tag, made of the environment's files and these."""
    digest = hashlib.sha256()
    for path in sorted([*(places.PROJECT / name for name in ENVIRONMENT), *files]):
        digest.update(f"{path.relative_to(places.PROJECT)}\0".encode() + path.read_bytes())
    registry = os.environ.get("CSLM_REGISTRY") or "localhost"
    return f"{registry}/{image}:{digest.hexdigest()[:12]}"
