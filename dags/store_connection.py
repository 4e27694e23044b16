"""The object store as Airflow knows it: its connection `cslm_s3` takes the place of the AWS_* variables.

    login, password       AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY
    extra, a JSON object  see EXTRA: AWS_ENDPOINT_URL and the like

Every task looks it up before it works, so that what a task starts, a process or a container, has it in its
environment, and a changed key needs no restart. What the connection has wins over the environment; without a
connection the environment stands. Airflow masks its password in logs. Pods get no keys from here, but from a
Secret (dags.runners.pods): whoever may read a pod's description would have them.
"""

from __future__ import annotations

import logging
import os

from airflow.sdk import Connection
from airflow.sdk.exceptions import AirflowFailException, AirflowNotFoundException

log = logging.getLogger("airflow.task")
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
UNUSED = ("host", "schema", "port")
"""Fields of Airflow's form that an object store has no use for."""
ADDRESSES = ("http://", "https://")


def take_over(_: object = None) -> None:
    """Let this process, and what it starts, speak to the object store as the connection says, if there is one.

    Raises:
        AirflowFailException: the connection says something that cannot be meant.
    """
    try:
        found = Connection.get(CONNECTION)
    except AirflowNotFoundException:
        return
    told = variables(found)
    log.info("Airflow's connection %s gives %s", CONNECTION, ", ".join(told) or "nothing")
    if KEYS[0] in told:
        for name in OTHERS:
            os.environ.pop(name, None)
    os.environ.update(told)


def variables(found: Connection) -> dict[str, str]:
    """The variables that a connection stands for.

    Raises:
        AirflowFailException: half a pair of keys, or something that is not known, and so would not be used.
    """
    if bool(found.login) != bool(found.password):
        raise AirflowFailException(
            f"Airflow's connection {CONNECTION} has {'no password' if found.login else 'no login'}: give it "
            "both, the store's access key as login and its secret as password, or neither"
        )
    if unused := [name for name in UNUSED if getattr(found, name)]:
        raise AirflowFailException(
            f"Airflow's connection {CONNECTION} has a {unused[0]}, which is not used: the store's address is "
            'endpoint_url in its extra, such as {"endpoint_url": "https://s3.example.org"}'
        )
    extra = found.extra_dejson
    wrong = [key for key, value in extra.items() if key not in EXTRA or not isinstance(value, str)]
    if wrong:
        raise AirflowFailException(
            f"Airflow's connection {CONNECTION}: extra {', '.join(wrong)}: only texts are known there, and "
            f"only these: {', '.join(EXTRA)} (verify: the file of the store's CA)"
        )
    if not extra.get("endpoint_url", ADDRESSES[0]).startswith(ADDRESSES):
        raise AirflowFailException(
            f"Airflow's connection {CONNECTION}: extra endpoint_url: {extra['endpoint_url']} is no address: "
            "https://s3.example.org, please"
        )
    keys = dict(zip(KEYS, (found.login, found.password), strict=True)) if found.login else {}
    return keys | {EXTRA[key]: value for key, value in extra.items()}
