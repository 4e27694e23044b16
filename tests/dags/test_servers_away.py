"""Which failures Airflow tries again: of a server that is away or broken, and not of one that refuses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from dags import dvc_stage, failures, promotion, run, tracking
from tests.answering import AWAY, answering

SERVERS = [(AWAY, True), (503, True), (500, True), (403, False), (401, False)]
"""HTTP status that a server answers with -> whether another try may find it at work."""
CHECKOUT = Path(__file__).absolute().parents[2]


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[str]:
    with answering(request.param) as url:
        yield url


@pytest.fixture
def mlflow(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("CSLM_HOME", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    return server


@pytest.mark.parametrize(("server", "again"), SERVERS, indirect=["server"])
def test_a_store_that_is_away_is_tried_again_and_one_that_refuses_is_not(
    server: str, again: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CSLM_DVC_REMOTE", "s3://bucket/dvc")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    store = boto3.client(
        "s3", endpoint_url=server, aws_access_key_id="a", aws_secret_access_key="b", region_name="us-east-1"
    )
    code = dvc_stage.exit_code(lambda: store.head_object(Bucket="bucket", Key="dvc"), pull=True)
    assert code == (75 if again else 1)
    assert "s3://bucket/dvc (CSLM_DVC_REMOTE), does not do its work" in capsys.readouterr().err


@pytest.mark.parametrize(("server", "again"), SERVERS, indirect=["server"])
def test_an_mlflow_that_is_away_is_tried_again_and_one_that_refuses_is_not(mlflow: str, again: bool) -> None:
    said = f"MLflow at {mlflow} does not do its work"
    with pytest.raises(AirflowException, match=said) as ended, failures.readable():
        tracking.start("night", {}, {})
    assert (ended.type is AirflowFailException) is not again
    facts = {"run": "night", "commit": "", "mlflow_run": "1"}
    with pytest.raises(run.RunFailed, match="stage double failed") as failed, run.reported(facts, "double"):
        tracking.end("1", "FINISHED")
    assert (failed.type is run.MachineAway) is again


@pytest.mark.parametrize(("server", "again"), [(AWAY, True), (401, False)], indirect=["server"])
def test_a_gate_is_tried_again_when_mlflow_is_away_and_not_when_it_refuses(
    mlflow: str, again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CSLM_COMPONENTS", str(CHECKOUT / ".venv" / "components" / "bin"))
    with pytest.raises((run.MachineAway, promotion.PromotionRefused), match=mlflow) as ended:
        promotion.gate("cslm", None, lambda line: None)
    assert (ended.type is run.MachineAway) is again
