#!/usr/bin/env bash
# Set up and run every check: lint, types, tests. Options go to pytest, e.g. scripts/test.sh -m "not live".
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/environment.sh
prepare_environment test
prepare_prometheus
"$VENV/bin/ruff" check .
"$VENV/bin/ruff" format --check .
"$VENV/bin/mypy"
exec "$VENV/bin/python" -m pytest "$@"
