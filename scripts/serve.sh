#!/usr/bin/env bash
# Set up and serve: a virtual environment, the package, all archives, TorchServe. Options go to `marctl up`.
#   scripts/serve.sh            in the foreground, until Ctrl-C
#   scripts/serve.sh --detach   leave it running; stop it with .venv/bin/marctl down
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/environment.sh
prepare_environment
exec "$VENV/bin/marctl" up "$@"
