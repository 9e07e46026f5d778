#!/usr/bin/env bash
# Set up and run every check: lint, types, tests. Options go to pytest, e.g. scripts/test.sh -m "not live".
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/environment.sh
prepare_environment test
prepare_prometheus
prepare_chromium
"$VENV/bin/ruff" check .
"$VENV/bin/ruff" format --check .
"$VENV/bin/mypy"
# Two files of tests at a time: most of them wait for servers to start. The live ones come before the many short ones.
run=0
"$VENV/bin/python" -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@" || run=$?
# Exit status 1 is pytest's for tests that failed; any other is final.
[ "$run" = 1 ] || exit "$run"
# Dozens of servers share two cores above, and one may miss a deadline. What is broken fails by itself, too.
printf '\nTests failed. They run once more, one at a time; the check fails if one of them fails again.\n\n'
exec "$VENV/bin/python" -m pytest --last-failed --last-failed-no-failures none "$@"
