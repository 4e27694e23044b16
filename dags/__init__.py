"""Airflow schedules what `dvc.yaml` defines; no torch, no `cslm`, no `components` in here."""
