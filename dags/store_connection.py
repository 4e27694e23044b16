"""The object store as Airflow knows it: its connection `cslm_s3` takes the place of the AWS_* variables.

    login, password       AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY
    extra, a JSON object  see EXTRA: AWS_ENDPOINT_URL and the like

Every task looks it up before it works, so that what a task starts, a process or a container, has it in its
environment, and a changed key needs no restart. What the connection has wins over the environment; without a
connection the environment stands. Airflow masks its password in logs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from airflow.sdk import Connection
from airflow.sdk.exceptions import AirflowFailException, AirflowNotFoundException

CONNECTION = "cslm_s3"
EXTRA = {
    "endpoint_url": "AWS_ENDPOINT_URL",
    "region_name": "AWS_DEFAULT_REGION",
    "verify": "AWS_CA_BUNDLE",
    "aws_session_token": "AWS_SESSION_TOKEN",
}
"""Keys of the connection's extra, named as Airflow's connections of type `aws` have them."""
KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
OTHERS = ("AWS_SESSION_TOKEN", "AWS_PROFILE")
"""What would belong to other keys."""


def take_over(_: object = None) -> None:
    """Let this process, and what it starts, speak to the object store as the connection says, if there is one.

    Raises:
        AirflowFailException: the connection says something that cannot be meant.
    """
    try:
        found = Connection.get(CONNECTION)
    except AirflowNotFoundException:
        return
    told = variables(found.login, found.password, found.extra_dejson)
    if KEYS[0] in told:
        for name in OTHERS:
            os.environ.pop(name, None)
    os.environ.update(told)


def variables(login: str | None, password: str | None, extra: Mapping[str, Any]) -> dict[str, str]:
    """The variables that a connection stands for.

    Raises:
        AirflowFailException: half a pair of keys, or an extra that is not known.
    """
    if bool(login) != bool(password):
        raise AirflowFailException(
            f"Airflow's connection {CONNECTION} has {'no password' if login else 'no login'}: give it both, "
            "the store's access key as login and its secret as password, or neither"
        )
    wrong = [key for key, value in extra.items() if key not in EXTRA or not isinstance(value, str)]
    if wrong:
        raise AirflowFailException(
            f"Airflow's connection {CONNECTION}: extra {', '.join(wrong)}: only texts are known there, and "
            f"only these: {', '.join(EXTRA)} (verify: the file of the store's CA)"
        )
    keys = dict(zip(KEYS, (login, password), strict=True)) if login and password else {}
    return keys | {EXTRA[key]: value for key, value in extra.items()}
