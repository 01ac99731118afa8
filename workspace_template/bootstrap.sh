#!/usr/bin/env bash
# Brings a rented pod from bare to a session at work. Run it again at any time: it goes on, but for
# a session that a person stopped, which waits for `runbook resume`.
#
#   bash bootstrap.sh          install, check, then launch in the background: SSH may drop
#   bash bootstrap.sh run      install, check, then run in the foreground, as a managed job does
#   bash bootstrap.sh check    install and check alone
#
# What it reads from .env or the environment stands in .env.example.
set -euo pipefail

mode=${1:-launch}
case $mode in
  launch | run | check) ;;
  *)
    echo "bootstrap.sh: '$mode' is none of launch, run, check" >&2
    exit 2
    ;;
esac

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if [ -f "$here/.env" ]; then
  set -a
  # shellcheck source=/dev/null
  . "$here/.env"
  set +a
fi

# All that must outlive the pod lies on the volume: the session, the caches, the home folder.
volume=${RUNBOOK_VOLUME:-/workspace}
workspace=${RUNBOOK_WORKSPACE:-$volume}
export RUNBOOK_WORKSPACE=$workspace
export HOME=$volume/home
export XDG_CONFIG_HOME=$volume/.config
export HF_HOME=$volume/.cache/huggingface
export TRANSFORMERS_CACHE=$volume/.cache/huggingface/transformers
export HF_DATASETS_CACHE=$volume/.cache/huggingface/datasets
export TORCH_HOME=$volume/.cache/torch
export PIP_CACHE_DIR=$volume/.cache/pip
mkdir -p "$HOME" "$XDG_CONFIG_HOME" "$TRANSFORMERS_CACHE" "$HF_DATASETS_CACHE" "$TORCH_HOME" \
  "$PIP_CACHE_DIR" "$workspace"/{artifacts,results,logs,data,checkpoints}
if command -v mountpoint >/dev/null && ! mountpoint -q "$volume"; then
  echo "bootstrap.sh: warning: no volume is mounted at $volume; what is there goes with the pod" >&2
fi

# The packages go to the container's disk: from a network volume Python starts slowly.
venv=${RUNBOOK_VENV:-/opt/runbook}
source=${RUNBOOK_SOURCE:-}
if [ -z "$source" ]; then
  for wheel in "$here"/runbook-*.whl; do
    if [ -f "$wheel" ]; then source=$wheel; fi
  done
fi
if [ -n "$source" ]; then
  case $source in
    *://*) requirement="runbook[@EXTRAS@] @ $source" ;;
    *)
      # A bare name would be looked up in the package index, and be another project's.
      if ! [ -e "$source" ]; then
        echo "bootstrap.sh: RUNBOOK_SOURCE=$source is neither a file, a folder nor an address" >&2
        exit 2
      fi
      source=$(realpath "$source")
      requirement="${source}[@EXTRAS@]"
      ;;
  esac
  mark=$venv/.installed
  if [ "$(cat "$mark" 2>/dev/null)" != "$requirement" ] || [ "$source" -nt "$mark" ]; then
    "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
      echo "bootstrap.sh: Python 3.11 or newer is needed; name one: PYTHON=python3.11" >&2
      exit 2
    }
    "${PYTHON:-python3}" -m venv "$venv"
    pinned=()
    if [ -f "$here/constraints.txt" ]; then pinned=(-c "$here/constraints.txt"); fi
    "$venv/bin/python" -m pip install --quiet "${pinned[@]}" "$requirement"
    printf '%s\n' "$requirement" >"$mark"
  fi
  export PATH=$venv/bin:$PATH
elif ! command -v runbook >/dev/null; then
  echo "bootstrap.sh: there is no runbook to install: put its wheel beside this file, or set" >&2
  echo "  RUNBOOK_SOURCE to a wheel, a checkout or a git+https:// address in $here/.env" >&2
  exit 2
fi

begun=no
if compgen -G "$workspace/.runbook/journal*.jsonl" >/dev/null; then begun=yes; fi

# A session that was begun is not held up: resume checks for itself what it still needs.
if ! runbook doctor "$here/runbook.yaml" --workspace "$workspace" && [ $begun = no ]; then
  exit 2
fi
if [ "$mode" = check ]; then exit 0; fi
if [ "$mode" = launch ]; then
  exec runbook launch "$here/runbook.yaml" --workspace "$workspace"
elif [ $begun = yes ]; then
  exec runbook resume --workspace "$workspace" --takeover=if-owner-gone
fi
exec runbook run "$here/runbook.yaml" --workspace "$workspace"
