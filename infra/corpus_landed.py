"""Tell Airflow that a corpus has grown: `cslm_retrain` then looks at once whether to train, not only at night.

Run:  make corpus-landed        after dvc add, while make up or make compose runs

Speaks to Airflow at AIRFLOW_PORT as its admin, with the password in CSLM_HOME.
"""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request
from typing import Any

from dags import assets, places
from infra import airflow_local

PASSWORDS = "airflow/passwords.json"
TIMEOUT_S = 30


class NotReady(Exception):
    """Airflow cannot be told yet; the message says why and what to do."""


def main() -> int:
    url = f"http://127.0.0.1:{airflow_local.port('AIRFLOW_PORT', 8080)}"
    try:
        event = tell(url)
    except NotReady as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:  # urllib's are
        print(_explained(error, url), file=sys.stderr)
        return 1
    print(f"Airflow at {url} knows it since {event['timestamp']}; look at the log of decide in cslm_retrain")
    return 0


def tell(url: str) -> dict[str, Any]:
    """The event that Airflow makes of it.

    Raises:
        OSError: no password is here, or Airflow does not answer, or refuses (HTTPError).
        NotReady: Airflow has made no password yet, or has not read the DAGs.
    """
    password = _password()
    token = _call(f"{url}/auth/token", {"username": "admin", "password": password})["access_token"]
    known = _call(f"{url}/api/v2/assets?name_pattern={assets.CORPUS.name}", token=token)["assets"]
    if not known:
        raise NotReady(
            f"Airflow at {url} does not know of {assets.CORPUS.name} yet: it has just been started, or has not "
            "read the DAGs. Try again in a minute; `make dags` says if they cannot be read"
        )
    return _call(f"{url}/api/v2/assets/events", {"asset_id": known[0]["id"]}, token)


def _password() -> str:
    path = places.home() / PASSWORDS
    try:
        return str(json.loads(path.read_text("utf-8"))["admin"])
    except (ValueError, KeyError, TypeError) as error:
        raise NotReady(
            f"{path} has no password of admin: Airflow writes it when it first starts (make up, or make "
            "compose). Wait until it answers; if it does, stop it, delete the file, and start it again"
        ) from error


def _call(url: str, body: dict[str, Any] | None = None, token: str = "") -> dict[str, Any]:
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    request = urllib.request.Request(url, json.dumps(body).encode() if body else None, headers)
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
        return dict(json.loads(answer.read()))


def _explained(error: OSError, url: str) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return (
            f"Airflow at {url} refuses: {error}. Is it the one of this folder? Its port is AIRFLOW_PORT, its "
            f"admin's password in {places.home() / PASSWORDS}"
        )
    return (
        f"Airflow does not answer at {url} ({getattr(error, 'reason', error)}): start it (make up, or make "
        "compose), or name its port (AIRFLOW_PORT=...). If you do neither, cslm_retrain sees the corpus at "
        "night, once Airflow runs"
    )


if __name__ == "__main__":
    sys.exit(main())
