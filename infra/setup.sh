#!/usr/bin/env bash
# Make the two environments, the git hook, and pull the sample data and base models out of the embedded store.
#
# Run:  make setup      (quick if nothing has changed; PYTHON=/path/to/python3.11 picks the interpreter)
#       infra/setup.sh kubeflow      one more environment, of those in requirements/
#
# torch is installed by pip before all else: pip's usual index offers a CPU build where there is no GPU, and uv, which
# installs the rest in seconds, does not find that file. PIP_INDEX_URL and UV_INDEX_URL are respected.
set -euo pipefail
cd "$(dirname "$0")/.."

UV=uv==0.13.9
TORCH=$(grep '^torch==' requirements/components.txt)
CSLM_HOME=${CSLM_HOME:-$PWD/var}
[[ $CSLM_HOME = /* ]] || CSLM_HOME=$PWD/$CSLM_HOME
export CSLM_HOME
export PIP_CACHE_DIR=${PIP_CACHE_DIR:-$CSLM_HOME/cache/pip} UV_CACHE_DIR=${UV_CACHE_DIR:-$CSLM_HOME/cache/uv}
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore

say() { printf '%s\n' "$*"; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }

find_python() {
  local candidate
  for candidate in ${PYTHON:-python3.11 python3}; do
    if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
}

check_system() {
  local missing=()
  command -v git >/dev/null || missing+=(git)
  command -v make >/dev/null || missing+=(make)
  command -v g++ >/dev/null || missing+=(g++) # DeepSpeed compiles one operator
  python=$(find_python)
  if [[ -z $python ]]; then
    missing+=(python3 python3-venv python3-dev)
  else
    "$python" -c 'import venv, ensurepip' 2>/dev/null || missing+=(python3-venv)
    "$python" -c 'import os, sysconfig, sys; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' ||
      missing+=(python3-dev)
  fi
  if ((${#missing[@]})); then
    die "these system packages are missing: ${missing[*]}
  install them with:  sudo apt-get install -y ${missing[*]}
  (Python 3.11 is Debian 12's own; elsewhere set PYTHON=/path/to/python3.11)"
  fi
}

# environment NAME: .venv/NAME as requirements/NAME.txt says, unless it already is.
environment() {
  local name=$1 folder=.venv/$1 lock=requirements/$1.txt digest
  digest=$(cat "$lock" infra/setup.sh | sha256sum)
  [[ -x $folder/bin/python && $(cat "$folder/.lock-digest" 2>/dev/null) == "$digest" ]] && return
  say "setup: environment $name ($(grep -c == "$lock") packages) ..."
  "$python" -m venv --clear "$folder"
  "$folder/bin/python" -m pip install --quiet "$UV"
  if [[ $name == components ]]; then
    "$folder/bin/python" -m pip install --quiet "$TORCH"
  fi
  VIRTUAL_ENV=$folder "$folder/bin/uv" pip install --quiet --no-deps -r "$lock"
  VIRTUAL_ENV=$folder "$folder/bin/uv" pip check --quiet ||
    say "setup: (the packages named above disagree on versions; the test suite passes with them)"
  printf '%s' "$digest" >"$folder/.lock-digest"
}

hook() {
  local hooks
  hooks=$(git rev-parse --git-path hooks 2>/dev/null) || { say "setup: no git repository here, so no hook"; return; }
  [[ -e $hooks/pre-commit || $(git config --get core.hooksPath) ]] && return # the user's own hooks stay
  mkdir -p "$hooks"
  cp infra/hooks/pre-commit "$hooks/pre-commit"
}

# data: what data/*.dvc, models/*.dvc and docs/*.dvc name, out of store/.
data() {
  local pointers=() pointer out missing=0 stored
  while read -r pointer; do
    stored=$(sed -n 's/^.*md5: //p' "$pointer" | head -n 1)
    if [[ ! -d store || -e store/files/md5/${stored:0:2}/${stored:2} ]]; then
      pointers+=("$pointer")
    elif [[ ! -e ${pointer%.dvc} ]]; then
      say "setup: ${pointer%.dvc} is not in the embedded store: dvc pull -r YOUR_REMOTE $pointer brings it"
    fi
  done < <(find data models docs -maxdepth 1 -name '*.dvc' 2>/dev/null | sort)
  if ! ((${#pointers[@]})); then
    say "setup: no data/*.dvc or models/*.dvc in this checkout: it carries no sample corpus, bring your own (README)"
    return
  fi
  for pointer in "${pointers[@]}"; do
    out=${pointer%.dvc}
    [[ -e $out ]] || missing=1
  done
  local digest
  digest=$(cat "${pointers[@]}" | sha256sum)
  [[ $missing == 0 && $(cat "$CSLM_HOME/dvc/pulled" 2>/dev/null) == "$digest" ]] && return
  [[ -d store ]] || die "the embedded store (folder store/ in git) is missing: is this a sparse or damaged clone? git checkout -- store"
  say "setup: sample corpus and base models from the embedded store ..."
  DVC_NO_ANALYTICS=1 DVC_SITE_CACHE_DIR=$CSLM_HOME/dvc/site DVC_GLOBAL_CONFIG_DIR=$CSLM_HOME/dvc/global \
    .venv/orchestrator/bin/python -m dvc pull --quiet -r embedded "${pointers[@]}" ||
    die "dvc could not take these from store/ (see above); git fsck tells whether the clone is whole"
  mkdir -p "$CSLM_HOME/dvc"
  printf '%s' "$digest" >"$CSLM_HOME/dvc/pulled"
}

started=$SECONDS
check_system
environment orchestrator
environment components
for extra in "$@"; do
  environment "$extra"
done
hook
.venv/orchestrator/bin/python -c 'from dags.run import write_dvc_config; from dags.places import PROJECT; write_dvc_config(PROJECT)'
data
say "setup: ready ($((SECONDS - started)) s)"
