"""The graph of dvc.yaml as a pipeline of Kubeflow Pipelines.

    plan        what is to be compiled: tasks, edges, images, limits, as a structure of plain values
    share       the run's code and data, brought to the DVC remote that all tasks share
    compiler    a plan becomes YAML                     (in .venv/kubeflow, which has kfp)
    local       that YAML is run here by kfp.local      (in .venv/kubeflow)

`make kubeflow` does the first three, `make kubeflow-local` all (__main__.py).
"""
