#!/usr/bin/env bash
# Start a stack of its own, load it, check thresholds, write a report, stop everything.
#   loadtest/run.sh --versions mcqa/1.0 --seconds 300 --min-rps 1000 --max-p99-ms 100 --max-errors 0
#   loadtest/run.sh --rate 500 --shape spike      open loop
#   loadtest/run.sh --help
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/environment.sh
prepare_environment load
exec "$VENV/bin/python" -m loadtest.run "$@"
