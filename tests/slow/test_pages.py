"""What people do on the pages, in a real browser: trigger with the form, approve, see the alias."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from tests.end_to_end.checkout import ORCHESTRATOR, environment
from tests.infra import running

CHROMIUM = shutil.which("chromium")
PICTURES = os.environ.get("PICTURES")
"""A folder for pictures of the pages, if somebody wants to look at them."""
LIMIT_MS = 60_000
RUN_S = 600

pytestmark = [
    pytest.mark.timeout(1800),
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: apt-get install chromium"),
]


class Services(NamedTuple):
    airflow: str
    mlflow: str
    password: str
    token: str


@pytest.fixture(scope="module")
def services(clone: Path, first: str, store: dict[str, str]) -> Iterator[Services]:
    ports = running.ports()
    variables = environment(clone) | store | ports
    command = [str(ORCHESTRATOR), "-m", "infra.services"]
    up = subprocess.run([*command, "up"], cwd=clone, env=variables, capture_output=True, text=True, check=False)
    try:
        assert up.returncode == 0, up.stdout + up.stderr
        airflow, token = running.airflow(clone, ports)
        password = json.loads((clone / "var" / "airflow" / "passwords.json").read_text())["admin"]
        yield Services(airflow, f"http://127.0.0.1:{ports['MLFLOW_PORT']}", password, token)
    finally:
        subprocess.run([*command, "down"], cwd=clone, env=variables, check=True)


@pytest.fixture
def page(services: Services) -> Iterator[Page]:
    """A browser that has logged in to Airflow."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = chromium.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(LIMIT_MS)
        page.goto(services.airflow)
        page.locator("input[name=username]").fill("admin")
        page.locator("input[name=password]").fill(services.password)
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_role("link", name="Dags").first).to_be_visible(timeout=LIMIT_MS)
        yield page
        chromium.close()


def test_a_run_is_triggered_with_the_form(services: Services, page: Page) -> None:
    page.goto(f"{services.airflow}/dags/cslm_train")
    page.get_by_role("button", name="Trigger").first.click()
    page.locator("#element_profile input[role=combobox]").fill("test")
    page.keyboard.press("Enter")
    page.locator("input[name=element_name]").fill("by-hand")
    _picture(page, "airflow-form")
    page.get_by_role("dialog").get_by_role("button", name="Trigger").click()
    runs = f"{services.airflow}/api/v2/dags/cslm_train/dagRuns"
    [run] = running.until(lambda: _named(runs, services.token, "by-hand"))
    assert running.ended(f"{runs}/{run['dag_run_id']}", services.token, RUN_S) == "success"


def test_a_person_approves_and_mlflow_shows_the_alias(services: Services, page: Page) -> None:
    runs = f"{services.airflow}/api/v2/dags/cslm_promote/dagRuns"
    [run, *_] = running.until(lambda: running.call(runs, token=services.token)["dag_runs"])
    name = run["dag_run_id"]
    running.until(lambda: _waits(f"{runs}/{name}", services.token))
    time.sleep(running.READING_S)
    page.goto(f"{services.airflow}/dags/cslm_promote/runs/{name}/tasks/approve/required_actions")
    expect(page.get_by_text("Version 1 of cslm into production?")).to_be_visible(timeout=LIMIT_MS)
    _picture(page, "airflow-approval")
    page.locator("#element_reason").fill("hears numbers better")
    page.get_by_role("button", name="Approve").click()
    assert running.ended(f"{runs}/{name}", services.token) == "success"
    page.goto(f"{services.mlflow}/#/models/cslm")
    expect(page.get_by_text("production").first).to_be_visible(timeout=LIMIT_MS)
    _picture(page, "mlflow-version")
    page.goto(f"{services.mlflow}/#/models/cslm/versions/1")
    expect(page.get_by_text("by admin: hears numbers better").first).to_be_visible(timeout=LIMIT_MS)


def _named(runs: str, token: str, name: str) -> list[dict[str, Any]]:
    found = running.call(runs, token=token)["dag_runs"]
    return [run for run in found if (run["conf"] or {}).get("name") == name]


def _waits(run: str, token: str) -> bool:
    tasks = running.call(f"{run}/taskInstances", token=token)["task_instances"]
    return any(task["task_id"] == "approve" and task["state"] == "awaiting_input" for task in tasks)


def _picture(page: Page, name: str) -> None:
    if PICTURES:
        page.screenshot(path=Path(PICTURES) / f"{name}.png")
