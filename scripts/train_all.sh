#!/usr/bin/env bash
# Train all networks, from a folder of videos to a generator for dubbing; --help describes it (scripts/train_all.py).
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
[[ -x $root/.venv/bin/python ]] || { echo "error: no $root/.venv; run 'make .venv/.weights' there first" >&2; exit 2; }
PYTHONPATH=$root exec "$root/.venv/bin/python" -m scripts.train_all "$@"
