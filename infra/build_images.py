"""Build the images of the components, with podman or docker.

Run:  make images                       (python -m infra.build_images)
      make images ONLY='validate tokenize' FROM=localhost/cslm-base

First pip brings the wheels of the locked packages into CSLM_HOME/wheels and checks their hashes; then two
environments are built of them, `torch` and the smaller `data`; then a thin image for every component, labelled
with the git commit. Wheels and environments that are there already are not made again. With `evaluate` come the
models that it hears with, into CSLM_HOME/models. `orchestrator` is no
component: its image, on the environment `torch`, has Airflow, DVC and MLflow's server (infra/compose.yaml).
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

from dags import images, places

ENVIRONMENTS = {"torch": "components", "data": "data"}
"""Environment -> its lock in requirements/."""
LOCKED = re.compile(r"^([A-Za-z0-9_.-]+==[^\s\\]+)((?: \\\n +--hash=\S+)*)$", re.MULTILINE)
"""A package of a lock, and its hashes."""
LABEL = "org.opencontainers.image.base.name"
ALONE = ("torch==", "deepspeed==")
"""Not like the other wheels: one has no hash, the other is built with it."""
HASHED = ("--no-deps", "--require-hashes")
WITH_OPERATOR = ("--no-build-isolation", "--no-cache-dir")
"""DeepSpeed's operator for CPUs is compiled here, with torch at hand: an image has no compiler for it."""
BASE = "docker.io/library/python:3.11-slim-bookworm"
JUDGES = ("whisper-base-ct2", "dnsmos", "resemblyzer")
"""Models that `evaluate` hears with (components/evaluate/speech.py)."""


def main() -> int:
    """Build what is asked for; 1 and one line if something is missing."""
    components = (places.PROJECT / "components").glob("*/Dockerfile")
    known = sorted([*(path.parent.name for path in components), images.ORCHESTRATOR])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("components", nargs="*", metavar="NAME", help=f"{', '.join(known)}; without any: all")
    parser.add_argument("--from", dest="base", default=BASE, help="image with Python 3.11 (%(default)s)")
    arguments = parser.parse_args()
    if unknown := set(arguments.components) - set(known):
        return _fail(f"there is no image of {', '.join(sorted(unknown))}; there are: {', '.join(known)}")
    try:
        engine = container_engine()
    except FileNotFoundError as error:
        return _fail(str(error))
    try:
        for name in arguments.components or known:
            began = time.monotonic()
            build = _orchestrator if name == images.ORCHESTRATOR else _component
            build(engine, name, arguments.base)
            print(f"{images.name(name)}  ({time.monotonic() - began:.0f} s)", flush=True)
            if name == "evaluate":
                _fetch_judges()
    except subprocess.CalledProcessError as error:
        return _fail(f"{' '.join(map(str, error.cmd[:3]))} ... ended with {error.returncode} (see above)")
    return 0


def container_engine() -> str:
    """CONTAINER_ENGINE, else podman, else docker.

    Raises:
        FileNotFoundError: there is none.
    """
    found = os.environ.get("CONTAINER_ENGINE") or shutil.which("podman") or shutil.which("docker")
    if found is None:
        raise FileNotFoundError("neither podman nor docker is here: sudo apt-get install -y podman runc")
    return found


def _fetch_judges() -> None:
    """What `evaluate` hears with, into CSLM_HOME, where its container sees it: there is no pip in an image."""
    for name in JUDGES:
        out = places.home() / "models" / name
        fetch = [str(places.components_bin() / "python"), "-m", "components.fetch", name, "--out", str(out)]
        if subprocess.run(fetch, cwd=places.PROJECT).returncode:
            print(
                f"images: without {name} evaluate leaves figures out: make images ONLY=evaluate fetches it",
                flush=True,
            )


def _component(engine: str, component: str, base: str) -> None:
    """A thin image: the code of the components on the environment that this one needs."""
    dockerfile = places.PROJECT / "components" / component / "Dockerfile"
    under = _environment(engine, _environment_of(dockerfile), base)
    _build(
        engine,
        images.name(component),
        dockerfile,
        places.PROJECT,
        {"ENVIRONMENT": under},
        _labels(component),
    )


def _orchestrator(engine: str, name: str, base: str) -> None:
    """The image of Airflow's services; built if it is not there on this environment."""
    under = _environment(engine, "torch", base)
    image = images.name(name)
    if _base_of(engine, image) == under:
        return
    dockerfile = places.PROJECT / "infra" / "images" / "orchestrator.Dockerfile"
    folder = _wheels(name, [name], [places.PROJECT / "requirements" / f"{name}.txt"])
    _build(engine, image, dockerfile, folder, {"ENVIRONMENT": under}, _labels(name) | {LABEL: under})


def _labels(title: str) -> dict[str, str]:
    commit = subprocess.run(
        ["git", "-C", str(places.PROJECT), "describe", "--always", "--abbrev=40", "--dirty"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    return {
        "org.opencontainers.image.title": f"cslm {title}",
        "org.opencontainers.image.revision": commit,
        "org.opencontainers.image.created": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
    }


def _environment_of(dockerfile: Path) -> str:
    """`ARG ENVIRONMENT=data` in a component's Dockerfile names the environment that it needs."""
    match = re.search(r"^ARG ENVIRONMENT=(\w+)$", dockerfile.read_text("utf-8"), re.MULTILINE)
    if match is None or match.group(1) not in ENVIRONMENTS:
        sys.exit(f"{dockerfile}: needs a line ARG ENVIRONMENT= with one of {', '.join(ENVIRONMENTS)}")
    return match.group(1)


def _environment(engine: str, environment: str, base: str) -> str:
    """The environment's image; built if it is not there."""
    image = images.tagged(f"cslm-environment-{environment}", [])
    if _base_of(engine, image) == base:
        return image
    print(f"images: environment {environment} on {base} ...", flush=True)
    dockerfile = places.PROJECT / "infra" / "images" / "environment.Dockerfile"
    folder = _wheels("wheels", [*ENVIRONMENTS.values(), "dvc"], [])
    _build(engine, image, dockerfile, folder, {"BASE": base, "LOCK": ENVIRONMENTS[environment]}, {LABEL: base})
    return image


def _wheels(title: str, locks: list[str], files: list[Path]) -> Path:
    """Folder with the wheels of some locks, lists of them, and uv to install them; whole or absent.

    Another one is made where the environments' files or these change. The lists have no hashes: what is built
    here from source has another one than its source. A list with torch has also what came with torch and is in
    no lock: CUDA's libraries, where pip gives the build for GPUs.
    """
    folder = places.home() / "wheels" / images.tagged(title, files).rpartition(":")[2]
    if folder.exists():
        return folder
    print(f"images: wheels of {', '.join(f'requirements/{name}.txt' for name in locks)} ...", flush=True)
    partial = folder.with_suffix(".partial")
    partial.mkdir(parents=True, exist_ok=True)
    pins = {name: _locked(name) for name in locks}
    for name, locked in pins.items():
        listed = partial / f"{name}.txt"
        listed.write_text("".join(f"{pin}\n" for pin in locked), "utf-8")
        if name == "data":
            continue  # its packages are among those of the other
        torch, deepspeed = (
            {pin: hashes for pin, hashes in locked.items() if pin.startswith(alone)} for alone in ALONE
        )
        others = {pin: hashes for pin, hashes in locked.items() if not pin.startswith(ALONE)}
        _pip_wheel(partial, others, *HASHED)
        # With what it needs, as the lock may be of a build for processors.
        _pip_wheel(partial, torch, "--constraint", str(listed))
        _pip_wheel(partial, deepspeed, *HASHED, *WITH_OPERATOR)
    known = {canonicalize_name(pin.partition("==")[0]) for locked in pins.values() for pin in locked}
    brought = [parse_wheel_filename(wheel.name)[:2] for wheel in sorted(partial.glob("*.whl"))]
    more = "".join(f"{name}=={version}\n" for name, version in brought if name not in known)
    for name, locked in pins.items():
        if any(pin.startswith("torch==") for pin in locked):
            with (partial / f"{name}.txt").open("a", encoding="utf-8") as listing:
                listing.write(more)
    shutil.copy(Path(sys.executable).with_name("uv"), partial / "uv")
    partial.rename(folder)
    return folder


def _locked(name: str) -> dict[str, str]:
    """The lock's packages, with their versions and hashes, but for those of NAME-tests.in."""
    folder = places.PROJECT / "requirements"
    tests: set[str] = set()
    if (wishes := folder / f"{name}-tests.in").exists():
        lines = wishes.read_text("utf-8").splitlines()
        tests = {canonicalize_name(Requirement(line).name) for line in lines if not line.startswith("#")}
    locked = LOCKED.findall((folder / f"{name}.txt").read_text("utf-8"))
    return {pin: hashes for pin, hashes in locked if canonicalize_name(pin.partition("==")[0]) not in tests}


def _pip_wheel(folder: Path, locked: dict[str, str], *options: str) -> None:
    """Wheels of packages and their hashes; torch has none, as its CPU build differs from place to place."""
    if not locked:
        return
    wishes = folder / ".wishes.txt"
    wishes.write_text("".join(f"{pin}{hashes}\n" for pin, hashes in locked.items()), "utf-8")
    pip = [str(places.components_bin() / "python"), "-m", "pip", "--quiet", "wheel", *options]
    environment = {
        **os.environ,
        "PIP_CACHE_DIR": os.environ.get("PIP_CACHE_DIR") or str(places.home() / "cache" / "pip"),
        "PATH": f"{places.components_bin()}{os.pathsep}{os.environ['PATH']}",
        "DS_ACCELERATOR": "cpu",
        "DS_BUILD_SHM_COMM": "1",
    }
    subprocess.run(
        [*pip, "--wheel-dir", str(folder), "--requirement", str(wishes)], env=environment, check=True
    )
    wishes.unlink()


def _base_of(engine: str, image: str) -> str | None:
    """What an environment was built on; None if it is not there."""
    command = [engine, "image", "inspect", "--format", f'{{{{index .Config.Labels "{LABEL}"}}}}', image]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return None if result.returncode else result.stdout.strip()


def _build(
    engine: str, image: str, dockerfile: Path, context: Path, arguments: dict[str, str], labels: dict[str, str]
) -> None:
    options = [option for key, value in arguments.items() for option in ("--build-arg", f"{key}={value}")]
    options += [option for key, value in labels.items() for option in ("--label", f"{key}={value}")]
    command = [engine, "build", "--quiet", "--tag", image, "--file", str(dockerfile), *options, str(context)]
    subprocess.run(
        command,
        env={**os.environ, "DOCKER_BUILDKIT": "1", "BUILDAH_LAYERS": "false"},
        stdout=subprocess.DEVNULL,
        check=True,
    )


def _fail(message: str) -> int:
    print(f"images: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
