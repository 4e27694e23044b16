"""What Airflow's connection to the object store becomes. Tasks with it: tests/infra (test_demo, test_tries)."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException

from dags import store_connection

KEYS = {"AWS_ACCESS_KEY_ID": "of-the-environment", "AWS_SECRET_ACCESS_KEY": "of-the-environment"}
OTHERS = {"AWS_SESSION_TOKEN": "of-the-environment", "AWS_ENDPOINT_URL": "http://environment"}


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (KEYS | OTHERS).items():
        monkeypatch.setenv(name, value)


def connect(monkeypatch: pytest.MonkeyPatch, **connection: Any) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_CSLM_S3", json.dumps({"conn_type": "aws", **connection}))
    store_connection.take_over()


def test_its_keys_take_the_place_of_those_of_the_environment_as_a_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    connect(monkeypatch, login="key", password="secret")
    assert (os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]) == ("key", "secret")
    assert "AWS_SESSION_TOKEN" not in os.environ, "it belongs to the other keys"
    assert os.environ["AWS_ENDPOINT_URL"] == "http://environment"


def test_the_tasks_log_names_what_it_gave_and_no_key(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        connect(monkeypatch, login="key", password="secret", extra={"region_name": "eu"})
    given = "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_DEFAULT_REGION"
    assert f"Airflow's connection cslm_s3 gives {given}" in caplog.messages


def test_without_keys_those_of_the_environment_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    connect(monkeypatch, extra={"endpoint_url": "https://store", "verify": "/etc/ca.pem"})
    assert os.environ["AWS_ENDPOINT_URL"] == "https://store"
    assert os.environ["AWS_CA_BUNDLE"] == "/etc/ca.pem"
    assert {name: os.environ[name] for name in KEYS} == KEYS
    assert os.environ["AWS_SESSION_TOKEN"] == "of-the-environment"


@pytest.mark.parametrize(
    ("connection", "told"),
    [
        ({"login": "key"}, "cslm_s3 has no password: give it both"),
        ({"password": "secret"}, "cslm_s3 has no login: give it both"),
        ({"extra": {"role_arn": "x"}}, "extra role_arn: .* only these: endpoint_url, region_name, verify"),
        ({"extra": {"verify": False}}, "extra verify: only texts are known there"),
        ({"host": "https://store"}, "has a host, which is not used: the store's address is endpoint_url in"),
        ({"schema": "bucket"}, "has a schema, which is not used"),
        ({"extra": {"endpoint_url": "store:9000"}}, "store:9000 is no address: https://s3.example.org, please"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    connection: dict[str, Any], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(AirflowFailException, match=told):
        connect(monkeypatch, **connection)
