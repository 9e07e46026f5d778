# Sourced by serve.sh and test.sh: the virtual environment they share, made once and mended when setup.cfg changes.

VENV="${VENV:-.venv}"

# prepare_environment [EXTRA]: create $VENV and install the package with an extra into it; seconds when nothing changed.
prepare_environment() {
    local extra="${1:-}" python stamp wanted
    python=$(find_python)
    wanted="$(cat setup.cfg setup.py pyproject.toml | cksum) $PWD"
    stamp="$VENV/.installed${extra:+-$extra}"
    link_names
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

# link_names: the folders by the names of their packages, for tools that read files and know no installed names (mypy).
link_names() {
    mkdir -p .names
    ln -sfn ../scripts .names/marctl
    ln -sfn ../handlers .names/marctl_handlers
}

# prepare_prometheus: Debian's Prometheus in $VENV/bin, for the tests of dashboards and alerts; not installed, only
# unpacked, which takes no rights. Elsewhere it says what to do, and those tests are skipped.
prepare_prometheus() {
    local folder="$VENV/prometheus"
    if (PATH="$VENV/bin:$PATH"; command -v promtool && command -v prometheus) >/dev/null; then
        return
    fi
    if ! command -v apt-get >/dev/null; then
        echo "no prometheus and promtool here; with them in PATH, dashboards and alerts are tested, too" >&2
        return
    fi
    echo "fetching Prometheus" >&2
    mkdir -p "$folder/lists/partial" "$folder/cache/archives/partial"
    (
        cd "$folder" || exit 1
        own=(-o Dir::State::Lists="$PWD/lists" -o Dir::Cache="$PWD/cache" -o APT::Sandbox::User="$(id -un)" -qq)
        apt-get "${own[@]}" update && apt-get "${own[@]}" download prometheus &&
            dpkg-deb --extract prometheus_*.deb . && rm -rf lists cache prometheus_*.deb
    ) >&2 && ln -sf ../prometheus/usr/bin/{prometheus,promtool} "$VENV/bin/"
    # Without it its tests are skipped, except in CI, where they fail.
    return 0
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
