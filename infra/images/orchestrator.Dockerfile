# What schedules and records: Airflow, DVC and MLflow's server, beside the components that tasks call (infra/compose.yaml).
#
# Built by `make images` on the environment `torch`, in a folder of checked wheels. The code is the checkout's, mounted
# at its own path: runs commit to its git, and the containers of stages see the same paths. git comes from Debian.
ARG ENVIRONMENT

FROM ${ENVIRONMENT}
USER 0
RUN apt-get update -qq --error-on=any && \
    apt-get install -qq --yes --no-install-recommends git >/dev/null && \
    rm -rf /var/lib/apt/lists/*
RUN --mount=type=bind,target=/wheels \
    set -eu; \
    python3 -m venv --without-pip /opt/orchestrator; \
    /wheels/uv pip install --quiet --no-cache --no-config --offline --compile-bytecode --python /opt/orchestrator/bin/python \
        --no-index --find-links /wheels --no-deps --requirement /wheels/orchestrator.txt
ENV PATH=/opt/orchestrator/bin:/usr/local/bin:/usr/bin:/bin \
    CSLM_COMPONENTS=/opt/components/bin
USER 10001:10001
