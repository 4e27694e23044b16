#!/usr/bin/env bash
# A base image with Debian 12's Python 3.11, for machines that reach Debian's packages but no image registry.
#
# Run:  infra/images/base.sh && make images FROM=localhost/cslm-base      (needs mmdebstrap, and root)
set -euo pipefail

engine=${CONTAINER_ENGINE:-$(command -v podman || command -v docker)}
mmdebstrap --quiet --variant=minbase --include=python3,python3-venv,libgomp1,ca-certificates bookworm - |
  "$engine" import --message "Debian 12 with Python 3.11" - localhost/cslm-base
