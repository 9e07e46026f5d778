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
    echo "setting up $VENV (a minute or a few the first time)" >&2
    SECONDS=0
    # --clear mends an environment whose making was interrupted.
    "$VENV/bin/python" -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear "$VENV"
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile --editable ".${extra:+[$extra]}" >&2
    compile_modules
    echo "$wanted" >"$stamp"
    echo "set up $VENV in $SECONDS s" >&2
}

# compile_modules: pip compiles one file after the other, and twice as many as anybody imports. What is left out here is
# compiled when it is first imported.
compile_modules() {
    local rare='/(tests|testing|models|_inductor|networkx|pygments|pip|setuptools|physics)/'
    # Some packages hold templates, which are no Python.
    "$VENV/bin/python" -m compileall -qq -j 0 -x "$rare" "$VENV/lib" >/dev/null || true
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
    if (PATH="$VENV/bin:$PATH"; command -v promtool && command -v prometheus) >/dev/null; then
        return
    fi
    if ! command -v apt-get >/dev/null; then
        echo "no prometheus and promtool here; with them in PATH, dashboards and alerts are tested, too" >&2
        return
    fi
    unpack_from_debian prometheus download prometheus &&
        ln -sf ../prometheus/usr/bin/{prometheus,promtool} "$VENV/bin/"
    # Without it its tests are skipped, except in CI, where they fail.
    return 0
}

# prepare_chromium: the same for Debian's Chromium without a window, and the libraries that this machine lacks for it,
# for the tests of the page. Without it they are skipped.
prepare_chromium() {
    local folder="$VENV/chromium" libraries
    if (PATH="$VENV/bin:$PATH"; command -v chromium-headless-shell) >/dev/null || ! command -v apt-get >/dev/null; then
        return
    fi
    unpack_from_debian chromium install --download-only --yes --no-install-recommends chromium-headless-shell || return 0
    folder=$(cd "$folder" && pwd)
    libraries="$folder/usr/lib/$(uname -m)-linux-gnu"
    cat >"$VENV/bin/chromium-headless-shell" <<END
#!/bin/sh
LD_LIBRARY_PATH="$libraries:$libraries/pulseaudio" exec "$folder/usr/lib/chromium/chromium-headless-shell" "\$@"
END
    chmod +x "$VENV/bin/chromium-headless-shell"
}

# unpack_from_debian FOLDER APT-GET-ARGUMENTS...: the packages that it downloads, unpacked in $VENV/FOLDER.
unpack_from_debian() {
    local folder="$VENV/$1"
    echo "fetching $1" >&2
    mkdir -p "$folder/lists/partial" "$folder/cache/archives/partial"
    (
        cd "$folder" || exit 1
        own=(-o Dir::State::Lists="$PWD/lists" -o Dir::Cache="$PWD/cache" -o APT::Sandbox::User="$(id -un)")
        own+=(-o Debug::NoLocking=1 -qq)
        # `download` leaves packages here, `install --download-only` in the cache.
        apt-get "${own[@]}" update && apt-get "${own[@]}" "${@:2}" &&
            for package in *.deb cache/archives/*.deb; do
                [ ! -e "$package" ] || dpkg-deb --extract "$package" . || exit 1
            done && rm -rf lists cache ./*.deb
    ) >&2
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
