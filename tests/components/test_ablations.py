"""The comparison of ablations: intervals, marks, claims, and what is left behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlflow
import pytest
import yaml

from components.ablations.__main__ import main
from components.ablations.comparison import Figure, change, claims, figures_of
from components.ablations.variants import Claim, load_study
from components.settings import load_settings
from cslm.evaluation.confidence import wilson
from dags import parameters

ROOT = Path(__file__).parents[2]
ANSWERS, ERRORS = "conversation.en.exact_match", "asr.en.wer"


def share(successes: int, n: int) -> Figure:
    return Figure(successes / n, *wilson(successes, n))


@pytest.mark.parametrize(
    ("name", "before", "after", "expected"),
    [
        (ANSWERS, share(90, 100), share(60, 100), -1),
        (ANSWERS, share(60, 100), share(90, 100), 1),
        (ANSWERS, share(90, 100), share(88, 100), 0),
        (ERRORS, Figure(0.1, 0.08, 0.12), Figure(0.3, 0.25, 0.35), -1),
        (ERRORS, Figure(0.3, 0.25, 0.35), Figure(0.1, 0.08, 0.12), 1),
    ],
)
def test_better_and_worse(name: str, before: Figure, after: Figure, expected: int) -> None:
    assert change(name, before, after) == expected


@pytest.mark.parametrize(
    ("without", "verdict"),
    [
        ({ANSWERS: share(50, 100), ERRORS: Figure(0.1, 0.08, 0.12)}, "SHOWN"),
        ({ANSWERS: share(89, 100), ERRORS: Figure(0.1, 0.08, 0.12)}, "NOT SEPARATED"),
        ({ANSWERS: share(90, 100), ERRORS: Figure(0.01, 0.005, 0.02)}, "CONTRADICTED"),
        ({ANSWERS: share(50, 100), ERRORS: Figure(0.01, 0.005, 0.02)}, "MIXED"),
        ({}, "NOT MEASURED"),
    ],
)
def test_a_claim_is_shown_or_honestly_not(without: dict[str, Figure], verdict: str) -> None:
    measured = {"all": {ANSWERS: share(90, 100), ERRORS: Figure(0.1, 0.08, 0.12)}, "less": without}
    claim = Claim(says="more is better", variant="less", figures=[ANSWERS, ERRORS])
    [line] = claims(measured, {"all": "all", "less": "less"}, [claim])
    assert line.startswith(f"- more is better: **{verdict}**")


def evaluation(right: int) -> dict[str, Any]:
    seconds = {"seconds": 0.1 + right / 1000, "seconds_ci95": [0.1, 0.3]}
    return {
        "conversation": {"en": {"exact_match": right / 100, "ci95": wilson(right, 100)}},
        "latency": {"interleaved": seconds, "full_chain": {"seconds": 9.0, "seconds_ci95": [8.0, 10.0]}},
    }


def test_the_chain_that_a_variant_answers_in_is_the_one_that_is_timed() -> None:
    assert figures_of(evaluation(50), "interleaved")["first_unit.seconds"].value == pytest.approx(0.15)
    assert figures_of(evaluation(50), "full_chain")["first_unit.seconds"].value == 9.0
    assert load_study().variants["full-chain"].chain == "full_chain"


def test_all_runs_are_compared_and_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CSLM_HOME", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    names = list(load_study().variants)
    for number, name in enumerate(names):
        metrics = tmp_path / "runs" / f"g-{name}" / "metrics"
        metrics.mkdir(parents=True)
        (metrics / "evaluation.json").write_text(json.dumps(evaluation(90 - 40 * bool(number))))
    main("g")
    printed = capsys.readouterr().out
    assert "| exact answers, English | 90.0 % (82.6 to 94.5) | 50.0 % (40.4 to 59.6) -" in printed
    assert (tmp_path / "runs/g-ablations/comparison.png").read_bytes().startswith(b"\x89PNG")
    [run] = mlflow.search_runs(experiment_names=["cslm-ablations"], output_format="list")
    assert run.data.metrics["no-mt.conversation.en.exact_match"] == 0.5
    (tmp_path / "runs" / f"g-{names[-1]}" / "metrics" / "evaluation.json").unlink()
    with pytest.raises(SystemExit, match=f"g-{names[-1]}.*make ablations"):
        main("g")


@pytest.mark.parametrize("name", load_study().variants)
def test_each_variant_is_a_usable_run(name: str, tmp_path: Path) -> None:
    study = load_study()
    params = parameters.merged(ROOT, study.profile, study.variants[name].overrides)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    settings = load_settings(tmp_path / "params.yaml")
    assert settings.register_.model == "cslm-ablations", "candidates of the product stay as they are"
    assert settings.backbone.checkpoint is None, "no variant may begin with what another one has learnt"
