#!/usr/bin/env bash
# Write requirements/*.txt: every package, direct or not, with the hashes of its files.
#
# Run:  infra/lock.sh      after `uv pip install` of something new and a green `make test`
#
# The two environments of `make setup` are locked as they are installed now, whatever their .in files say; data and dvc, parts of them that the images
# need, get the same versions. kubeflow is resolved anew. torch has no hash: its CPU build differs from the file of the same version that other machines get.
set -euo pipefail
cd "$(dirname "$0")/.."
uv=.venv/orchestrator/bin/uv
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# write NAME [ARGUMENT ...]: requirements/NAME.txt by `uv pip compile ARGUMENT ...`
write() {
  local name=$1
  shift
  {
    echo "# Locked by infra/lock.sh; do not edit."
    [[ ! -s $work/torch ]] || cat "$work/torch"
    "$uv" pip compile --quiet --generate-hashes --no-header --no-annotate --python-version 3.11 "$@"
  } >"$work/$name.txt"
  mv "$work/$name.txt" "requirements/$name.txt"
}

for name in orchestrator components; do
  VIRTUAL_ENV=.venv/$name "$uv" pip freeze --quiet | grep -vE '^((pip|uv)==|-e)' |
    sed -E 's/^torch==([0-9.]+)\+.*/torch==\1/' >"$work/$name.pins"
  grep '^torch==' "$work/$name.pins" >"$work/torch" || true
  grep -v '^torch==' "$work/$name.pins" >"$work/$name.in"
  write "$name" --no-deps "$work/$name.in"
done
rm "$work/torch"
write data --constraint "$work/components.pins" requirements/data.in
write dvc --constraint "$work/orchestrator.pins" requirements/dvc.in
write kubeflow requirements/kubeflow.in
