"""All of it in a Kubernetes cluster: the manifests with this checkout's images and settings, and its code.

Run:  make kubernetes CSLM_REGISTRY=registry.example.org/team                  (python -m infra.cluster)
      make kubernetes CSLM_REGISTRY=registry.example.org/team OVERLAY=trial

Writes CSLM_HOME/kubernetes/OVERLAY.yaml, which is infra/kubernetes/overlays/OVERLAY with the variables of
`SETTINGS` that are set, and CSLM_HOME/kubernetes/code.bundle, the commit that is checked out; says how both
reach the cluster. It asks no cluster anything, and neither key nor password is in what it writes.
Exit code: 0 done, 1 it cannot be made.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from dags import images, places, snapshot

OVERLAYS = places.PROJECT / "infra" / "kubernetes" / "overlays"
DEFAULT = "all"
IMAGES = {"cslm-orchestrator": images.ORCHESTRATOR, "cslm-chat": "chat"}
"""Image in infra/kubernetes/services -> what `make images` calls it."""
SETTINGS = (
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL",
    "CSLM_AIRFLOW_URL",
    "CSLM_ARTIFACTS",
    "CSLM_CHECKPOINTS",
    "CSLM_DVC_REMOTE",
    "CSLM_GPUS",
    "CSLM_GRACE_S",
    "CSLM_NODES",
    "CSLM_REGISTRY",
    "CSLM_RETRAIN_CRON",
    "CSLM_ROWS",
    "CSLM_STAGE_HOURS",
    "MLFLOW_EXPERIMENT_NAME",
)
"""Variables of the environment that services in the cluster get as they are here."""


class Refused(Exception):
    """Nothing can be made; the message says why and what to do."""


def main() -> int:
    """Write both files and say what to do with them; 1 and one line if something is missing."""
    try:
        overlay = os.environ.get("OVERLAY") or DEFAULT
        commit = _commit()
        manifests = _manifests(overlay, commit)
        _bundle()
    except (Refused, snapshot.SnapshotFailed) as error:
        print(f"kubernetes: {error}", file=sys.stderr)
        return 1
    print(_told(manifests, commit))
    return 0


def kustomization(overlay: Path, folder: Path, commit: str) -> dict[str, object]:
    """What turns an overlay into that of this checkout, as kustomize reads it in `folder`."""
    tagged = {name: images.name(built).rpartition(":") for name, built in IMAGES.items()}
    given = [f"{name}={os.environ[name]}" for name in SETTINGS if os.environ.get(name)]
    return {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": "cslm",
        "resources": [os.path.relpath(overlay, folder.resolve())],
        "images": [{"name": name, "newName": image, "newTag": tag} for name, (image, _, tag) in tagged.items()],
        "configMapGenerator": [
            {"name": "cslm", "behavior": "merge", "literals": given},
            {"name": "cslm-code", "behavior": "merge", "literals": [f"CSLM_COMMIT={commit}"]},
        ],
    }


def _commit() -> str:
    """The commit that is checked out, whole.

    Raises:
        Refused: this is a shallow clone, whose commits do not stand alone.
    """
    if snapshot.git(places.PROJECT, "rev-parse", "--is-shallow-repository") == "true":
        raise Refused("this clone is shallow, so its code cannot be brought anywhere: git fetch --unshallow")
    return snapshot.git(places.PROJECT, "rev-parse", "HEAD")


def _manifests(name: str, commit: str) -> Path:
    """The file of all objects.

    Raises:
        Refused: no registry, overlay or kubectl, or kustomize refuses the overlay.
    """
    if not os.environ.get("CSLM_REGISTRY"):
        raise Refused(
            "CSLM_REGISTRY is not set: a cluster takes images from a registry (registry.example.org/team)"
        )
    if shutil.which("kubectl") is None:
        raise Refused("kubectl is not here: sudo apt-get install -y kubernetes-client, or your cluster's own")
    known = sorted(path.parent.name for path in OVERLAYS.glob("*/kustomization.yaml"))
    if name not in known:
        raise Refused(f"OVERLAY={name}: infra/kubernetes/overlays has {', '.join(known)}")
    folder = _folder()
    text = yaml.safe_dump(kustomization(OVERLAYS / name, folder, commit), sort_keys=False)
    (folder / "kustomization.yaml").write_text(text, "utf-8")
    built = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=False)
    if built.returncode:
        raise Refused(
            f"the overlay {name} cannot be built; it must have ../../services, as `all` and `trial` do:\n"
            f"{built.stderr.strip()}"
        )
    file = folder / f"{name}.yaml"
    _write(file, built.stdout)
    return file


def _bundle() -> None:
    """The commit's code and history as one file, which git fetches from."""
    partial = _folder() / "code.partial"
    snapshot.git(places.PROJECT, "bundle", "create", "--quiet", str(partial), "HEAD")
    partial.rename(_folder() / "code.bundle")


def _told(manifests: Path, commit: str) -> str:
    changed = snapshot.git(places.PROJECT, "status", "--porcelain", "--untracked-files=no")
    lines = [
        f"manifests:  {manifests}",
        f"images:     {', '.join(images.name(built) for built in IMAGES.values())}, and those of the stages",
        "            (make images, then podman push)",
        f"code:       {_folder() / 'code.bundle'}, commit {commit[:12]}"
        + (", without what is changed and not committed here" if changed else ""),
        "",
        "With the Secrets in the namespace (docs/operators.md, On a cluster):",
        "",
        "  kubectl -n cslm delete job prepare --ignore-not-found",
        f"  kubectl apply -f {manifests}",
        "  until kubectl -n cslm exec -i job/prepare -c code -- sh -c 'cat >/tmp/code.bundle' \\",
        f"    <{_folder() / 'code.bundle'}; do sleep 5; done      # not if the cluster has this commit already",
        "  kubectl -n cslm wait --for=condition=complete --timeout=30m job/prepare",
    ]
    return "\n".join(lines)


def _write(file: Path, text: str) -> None:
    partial = file.with_suffix(".partial")
    partial.write_text(text, "utf-8")
    partial.rename(file)


def _folder() -> Path:
    folder = places.home() / "kubernetes"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


if __name__ == "__main__":
    sys.exit(main())
