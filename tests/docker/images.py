"""Builds the image as a user would, with Debian's buildah, which needs no engine; and reads what was built.

As root: `apt-get install buildah mmdebstrap`. The environment may name

    MARCTL_BASE            base image to pull; by default one is made of Debian's packages with the same Python
    MARCTL_BUILD_OPTIONS   further options of `buildah build`, such as `--build-arg TORCH_WHEELS=...`
    MARCTL_IMAGES          where layers are kept from run to run
    STORAGE_DRIVER         buildah's own: `vfs` where the kernel has no overlay file system
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).parents[2]
STORAGE = Path(os.environ.get("MARCTL_IMAGES", Path(tempfile.gettempdir()) / "marctl-images"))
DEBIAN, PACKAGES = "bookworm", "python3,python3-venv,ca-certificates"
DEBIAN_BASE = "localhost/python-base"
NEEDED = ("buildah", "mmdebstrap", "ip", "unshare", "nsenter", "setpriv")


def require_tools() -> None:
    missing = [name for name in NEEDED if not shutil.which(name)]
    if missing or os.geteuid() != 0:
        pytest.fail(f"run as root, with {', '.join(missing or NEEDED)}: apt-get install buildah mmdebstrap iproute2")


def buildah(*arguments: str) -> str:
    """What it prints."""
    places = ["--root", str(STORAGE / "storage"), "--runroot", str(STORAGE / "run")]
    done = subprocess.run(["buildah", *places, *arguments], cwd=PROJECT, stdout=subprocess.PIPE, text=True)
    assert done.returncode == 0, f"buildah {shlex.join(arguments)}"
    return done.stdout.strip()


@dataclass(frozen=True)
class Image:
    """A built image, unpacked at `root`."""

    name: str
    container: str
    root: Path
    config: dict[str, Any]
    """As its configuration has it: Entrypoint, Cmd, Env, User, WorkingDir, Healthcheck, StopSignal."""

    @property
    def environ(self) -> dict[str, str]:
        return dict(pair.split("=", 1) for pair in self.config["Env"])

    @property
    def packages(self) -> Path:
        return next(self.root.glob("opt/marctl/lib/python3*/site-packages"))

    @property
    def healthcheck(self) -> list[str]:
        kind, *command = self.config["Healthcheck"]["Test"]
        assert kind == "CMD"
        return list(command)

    def close(self) -> None:
        buildah("rm", self.container)


def build(name: str = "localhost/marctl:cpu") -> Image:
    """Build it from docker/Dockerfile; layers that have not changed are taken from the last time."""
    STORAGE.mkdir(parents=True, exist_ok=True)
    further = shlex.split(os.environ.get("MARCTL_BUILD_OPTIONS", ""))
    kind = ["--isolation", "chroot", "--layers", "--format", "docker"]
    base = ["--build-arg", f"BASE={os.environ.get('MARCTL_BASE') or debian_base()}"]
    buildah("build", *kind, "--file", "docker/Dockerfile", "--tag", name, *base, *further, ".")
    return unpack(name)


def with_archives(image: Image, archives: Path, name: str = "localhost/marctl:archives") -> Image:
    """One of docker/archives.Dockerfile, on top of another."""
    file = PROJECT / "docker/archives.Dockerfile"
    kind = ["--isolation", "chroot", "--format", "docker"]
    buildah("build", *kind, "--file", str(file), "--tag", name, "--build-arg", f"IMAGE={image.name}", str(archives))
    return unpack(name)


def unpack(name: str) -> Image:
    container = buildah("from", "--pull-never", name)
    root = Path(buildah("mount", container))
    inspected = json.loads(buildah("inspect", "--type", "image", name))
    return Image(name, container, root, inspected["Docker"]["config"])


def debian_base() -> str:
    """An image of Debian with Python, made once."""
    if DEBIAN_BASE not in buildah("images", "--format", "{{.Name}}").split():
        archive = STORAGE / "base.tar"
        subprocess.run(
            ["mmdebstrap", "--variant=minbase", f"--include={PACKAGES}", DEBIAN, str(archive)], check=True, cwd=STORAGE
        )
        container = buildah("from", "scratch")
        buildah("add", "--quiet", container, str(archive), "/")
        buildah("commit", "--quiet", container, DEBIAN_BASE)
        buildah("rm", container)
    return DEBIAN_BASE


def mib(path: Path) -> float:
    """What a file or folder takes, each inode once."""
    if not path.is_dir() or path.is_symlink():
        return path.lstat().st_size / (1 << 20)
    seen = {(found.st_dev, found.st_ino): found.st_size for file in path.rglob("*") if (found := file.lstat())}
    return sum(seen.values()) / (1 << 20)
