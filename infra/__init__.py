"""Where it all runs: setup, local Airflow and MLflow, the demo."""
