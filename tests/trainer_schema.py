"""Kubeflow Trainer's published schemas (package kubeflow-trainer-api), as strict as a cluster."""

from __future__ import annotations

from typing import Any

from kubeflow_trainer_api import models

KINDS = {"TrainJob": models.TrainerV1alpha1TrainJob, "TrainingRuntime": models.TrainerV1alpha1TrainingRuntime}


def validate(document: dict[str, Any]) -> None:
    """Nothing is missing, nothing of a wrong type, and nothing there that the schema does not know."""
    assert document["apiVersion"] == "trainer.kubeflow.org/v1alpha1"
    assert KINDS[document["kind"]].from_dict(document).to_dict() == document
