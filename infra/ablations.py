"""Train the model in several variants and compare them: does each idea of the paper earn its place?

Run:  make ablations                      every variant in components/ablations/variants.yaml

Each is a run of `cslm_train` with the same seed, in the MLflow experiment that the file names. What variants
share is computed once, and what is finished is kept: after a failure, or a changed variant, the same command
goes on from there.
"""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
from typing import Any

import yaml

from dags import places, run

VARIANTS = places.PROJECT / "components" / "ablations" / "variants.yaml"


def main() -> int:
    study = yaml.safe_load(VARIANTS.read_text("utf-8"))
    group = f"{datetime.datetime.now():%Y%m%d-%H%M}"
    variants: dict[str, dict[str, Any]] = study["variants"]
    environment = os.environ | {"MLFLOW_EXPERIMENT_NAME": study["experiment"], "PROFILE": study["profile"]}
    for number, (name, variant) in enumerate(variants.items(), start=1):
        print(f"\nvariant {number} of {len(variants)}: {variant['title']}", flush=True)
        changes = " ".join(f"{key}={json.dumps(value)}" for key, value in variant["set"].items())
        code = subprocess.run(
            [sys.executable, "-m", "infra.demo"],
            env=environment | {"RUN": f"{group}-{name}", "SET": changes},
            check=False,
        ).returncode
        if code:
            return code
    print("\nall variants\n", flush=True)
    return subprocess.run(
        [run.python(), "-m", "components.ablations", group], cwd=places.PROJECT, check=False
    ).returncode


if __name__ == "__main__":
    sys.exit(main())
