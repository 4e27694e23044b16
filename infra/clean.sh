#!/usr/bin/env bash
# Remove all run-time state: CSLM_HOME, after a question, and only if it is a folder of ours.
#
# Run:  make clean
#
# A folder of ours is var/ of this checkout, or has what `make setup`, a run or `make up` leaves in it. No folder
# that holds the checkout, the home folder or a git repository is removed.
set -euo pipefail
cd -P "$(dirname "$0")/.."

die() {
  echo "clean: $CSLM_HOME is not removed: $*" >&2
  exit 1
}

ours() {
  local mark
  [[ $folder != "$PWD/var" ]] || return 0
  for mark in dvc-cache dvc/pulled airflow/secrets.json airflow/compose.env; do
    [[ ! -e $folder/$mark ]] || return 0
  done
  return 1
}

[[ -d $CSLM_HOME ]] || { echo "clean: $CSLM_HOME is not there" >&2; exit 0; }
folder=$(realpath "$CSLM_HOME")
for kept in "$PWD" "$(realpath "$HOME")"; do
  [[ $kept/ != "${folder%/}"/* ]] || die "$kept is in it; set CSLM_HOME to the folder of the run-time state"
done
[[ ! -e $folder/.git ]] || die "it is a git repository; set CSLM_HOME to the folder of the run-time state"
ours || die "it has nothing of what runs leave behind (dvc-cache, airflow/secrets.json); set CSLM_HOME to the folder that has"

read -r -p "Remove $CSLM_HOME with all runs, caches and registered models? [y/N] " answer
[[ $answer == [yY] ]] || exit 1
[[ ! -x .venv/orchestrator/bin/python ]] || .venv/orchestrator/bin/python -m infra.services down
chmod -R u+w "$CSLM_HOME" 2>/dev/null || true
rm -rf "$CSLM_HOME"
echo "removed $CSLM_HOME"
