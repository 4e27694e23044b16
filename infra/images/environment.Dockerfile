# What components run in: Python, the locked packages, and DVC beside them, as on a machine after `make setup`.
#
# Built by `make images` in a folder of wheels that pip has checked against the hashes of the lock: the build
# needs neither a network nor a compiler. BASE is any image with Python 3.11; where no registry can be reached,
# infra/images/base.sh makes one from Debian's packages.
ARG BASE=docker.io/library/python:3.11-slim-bookworm

FROM ${BASE} AS packages
ARG LOCK
RUN --mount=type=bind,target=/wheels \
    set -eu; \
    for name in "${LOCK}" dvc; do \
        folder=/opt/$([ "${name}" = dvc ] && echo dvc || echo components); \
        python3 -m venv --without-pip "${folder}"; \
        /wheels/uv pip install --quiet --no-cache --no-config --offline --python "${folder}/bin/python" \
            --no-index --find-links /wheels --no-deps --requirement "/wheels/${name}.txt"; \
    done

FROM ${BASE}
COPY --from=packages /opt /opt
ENV PATH=/opt/components/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONPATH=/opt/cslm \
    PYTHONUNBUFFERED=1 \
    GIT_PYTHON_REFRESH=quiet \
    HOME=/tmp
RUN echo 'cslm:x:10001:10001:cslm:/tmp:/usr/sbin/nologin' >>/etc/passwd && echo 'cslm:x:10001:' >>/etc/group
WORKDIR /opt/cslm
USER 10001:10001
