# Sourced by serve.sh and test.sh: the virtual environment they share, made once and mended when setup.cfg changes.

VENV="${VENV:-.venv}"

# prepare_environment [EXTRA]: create $VENV and install the package with an extra into it; seconds when nothing changed.
prepare_environment() {
    local extra="${1:-}" python stamp wanted
    python=$(find_python)
    wanted="$(cat setup.cfg pyproject.toml | cksum) $PWD"
    stamp="$VENV/.installed${extra:+-$extra}"
    # An environment with an extra serves those who need none.
    if [ -x "$VENV/bin/marctl" ] && cat "$stamp"* 2>/dev/null | grep -qxF "$wanted"; then
        return
    fi
    echo "setting up $VENV (a few minutes the first time)" >&2
    # --clear mends an environment whose making was interrupted.
    "$VENV/bin/python" -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear "$VENV"
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --editable ".${extra:+[$extra]}" >&2
    echo "$wanted" >"$stamp"
}

find_python() {
    local name
    for name in python3.11 python3.12 python3.13 python3; do
        if command -v "$name" >/dev/null && "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
            echo "$name"
            return
        fi
    done
    echo "error: no Python 3.11 or newer found; install python3.11 and its venv module" >&2
    return 1
}
