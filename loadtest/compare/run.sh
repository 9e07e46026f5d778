#!/usr/bin/env bash
# The same model, tokenizer and requests through ours and other servers, in turns; one table, one plot.
#   loadtest/compare/run.sh --version 2.0 --seconds 30 --rounds 3
#   loadtest/compare/run.sh --only ours mosec fastapi --rounds 1
# The first run makes a virtual environment per server (minutes).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
. scripts/environment.sh
prepare_environment load
exec "$VENV/bin/python" -m loadtest.compare "$@"
