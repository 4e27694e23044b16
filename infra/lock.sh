#!/usr/bin/env bash
# Write requirements/*.txt: every package, direct or not, that is now installed in the two environments.
#
# Run:  infra/lock.sh      after `uv pip install` of something new and a green `make test`
#
# There are no hashes: torch's CPU build differs from the file of the same version that other machines get.
set -euo pipefail
cd "$(dirname "$0")/.."

for name in orchestrator components; do
  environment=.venv/$name
  {
    echo "# Locked by infra/lock.sh from requirements/$name.in; do not edit."
    VIRTUAL_ENV=$environment .venv/orchestrator/bin/uv pip freeze --quiet |
      sed -E 's/^torch==([0-9.]+)\+.*/torch==\1/' | grep -vE '^((pip|uv)==|-e)'
  } >"requirements/$name.txt.new"
  mv "requirements/$name.txt.new" "requirements/$name.txt"
done
