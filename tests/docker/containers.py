"""Runs an unpacked image as an engine would: own processes, network and mounts, a root file system that is read-only,
the image's user without any capability. The engine itself is what is missing.
"""

from __future__ import annotations

import shlex
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import requests

from tests.docker.images import Image

MOST_NETWORKS = 60
PORT, PROBES, FIGURES = 8000, 8001, 8002
POLL_S = 0.05
MOUNTS = r"""
set -e
mount --make-rprivate /
mount --bind "$ROOT" "$ROOT"
mount -o remount,bind,ro "$ROOT"
mount -t proc proc "$ROOT/proc"
mount --bind /sys "$ROOT/sys"
mount -o remount,bind,ro "$ROOT/sys"
mount -t tmpfs -o mode=1777,size=64m,nosuid,nodev tmpfs "$ROOT/tmp"
mount -t tmpfs -o mode=755,size=1m tmpfs "$ROOT/dev"
for name in null zero full random urandom; do
    touch "$ROOT/dev/$name"
    mount --bind "/dev/$name" "$ROOT/dev/$name"
done
ln -s /proc/self/fd "$ROOT/dev/fd"
mkdir "$ROOT/dev/shm"
mount -t tmpfs -o mode=1777,size=64m,nosuid,nodev tmpfs "$ROOT/dev/shm"
"""


@dataclass
class Container:
    """One container. `volumes`: path inside it to a folder of this machine, those in `read_only` cannot be written."""

    image: Image
    folder: Path
    volumes: Mapping[str, Path]
    read_only: frozenset[str] = frozenset({"/models", "/etc/marctl/state"})
    environ: Mapping[str, str] = field(default_factory=dict)
    arguments: list[str] = field(default_factory=list)
    """In place of the image's Cmd."""
    number: int = 0
    """Of its network, from `connect` on."""
    process: subprocess.Popen[bytes] | None = None

    @property
    def name(self) -> str:
        return f"marctl-test-{self.number}"

    @property
    def host(self) -> str:
        """This machine, as the container sees it; of TEST-NET-2 (RFC 5737)."""
        return f"198.51.100.{4 * self.number + 1}"

    @property
    def address(self) -> str:
        return f"198.51.100.{4 * self.number + 2}"

    @property
    def gateway(self) -> str:
        return f"http://{self.address}:{PORT}"

    @property
    def probes(self) -> str:
        return f"http://{self.address}:{PROBES}"

    @property
    def figures(self) -> str:
        return f"http://{self.address}:{FIGURES}"

    @property
    def log(self) -> Path:
        """What it prints, which is what an engine would keep."""
        return self.folder / f"{self.name}.log"

    def connect(self) -> None:
        """A network of its own, with this machine at the other end; other runs may have some, too."""
        for self.number in range(1, MOST_NETWORKS + 1):
            if subprocess.run(["ip", "netns", "add", self.name], stderr=subprocess.DEVNULL).returncode == 0:
                break
        inner, outer = f"mt{self.number}c", f"mt{self.number}h"
        run("ip", "link", "add", outer, "type", "veth", "peer", "name", inner, "netns", self.name)
        run("ip", "address", "add", f"{self.host}/30", "dev", outer)
        run("ip", "link", "set", outer, "up")
        inside = ["ip", "-n", self.name]
        run(*inside, "address", "add", f"{self.address}/30", "dev", inner)
        run(*inside, "link", "set", inner, "up")
        run(*inside, "link", "set", "lo", "up")

    def disconnect(self) -> None:
        run("ip", "netns", "delete", self.name)

    def start(self) -> None:
        self.kill()
        own = ["ip", "netns", "exec", self.name, "unshare", "--mount", "--pid", "--ipc", "--uts", "--fork"]
        own += ["--kill-child=KILL", "sh", "-c", self.script()]
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(own, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)

    def script(self) -> str:
        """What root does before it becomes the image's user."""
        lines = [f"ROOT={shlex.quote(str(self.image.root))}", MOUNTS]
        for path, folder in self.volumes.items():
            target = f'"$ROOT"{shlex.quote(path)}'
            lines.append(f"mount --bind {shlex.quote(str(folder))} {target}")
            lines += [f"mount -o remount,bind,ro {target}"] if path in self.read_only else []
        config = self.image.config
        command = [*config["Entrypoint"], *(self.arguments or config["Cmd"])]
        return "\n".join([*lines, f'exec chroot "$ROOT" {shlex.join(self.as_user(command))}'])

    def as_user(self, command: list[str]) -> list[str]:
        """The command as the image's user, in the image's folder and environment, with no way to more rights."""
        user, group = self.image.config["User"].split(":")
        rights = ["--reuid", user, "--regid", group, "--clear-groups"]
        rights += ["--no-new-privs", "--inh-caps=-all", "--bounding-set=-all"]
        pairs = [f"{name}={value}" for name, value in {**self.image.environ, **self.environ}.items()]
        folder = self.image.config["WorkingDir"]
        return ["/usr/bin/setpriv", *rights, "/usr/bin/env", "-i", "-C", folder, *pairs, *command]

    def run(self, *command: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """A further command inside, as `docker exec` would."""
        target = ["nsenter", "--target", str(self.first.pid), "--all", "--root"]
        inside = [*target, *self.as_user(list(command))]
        return subprocess.run(inside, capture_output=True, text=True, timeout=timeout_s)

    @property
    def first(self) -> psutil.Process:
        """PID 1 inside."""
        assert self.process is not None
        return next(iter(psutil.Process(self.process.pid).children()))

    def processes(self) -> list[psutil.Process]:
        return [self.first, *self.first.children(recursive=True)]

    def wait_ready(self, timeout_s: float = 180.0) -> float:
        """Seconds until it was ready, of those that passed in here."""
        start = time.monotonic()
        while time.monotonic() - start < timeout_s:
            assert self.process is not None
            assert self.process.poll() is None, self.log.read_text()
            with suppress(requests.RequestException):
                if requests.get(f"{self.probes}/ready", timeout=5).ok:
                    return time.monotonic() - start
            time.sleep(POLL_S)
        raise AssertionError(f"not ready after {timeout_s:.0f} s: {self.log.read_text()[-4000:]}")

    def stop(self, grace_s: float) -> tuple[int, float]:
        """The image's stop signal, and what became of it: exit code and seconds. Raises if it outlives the grace."""
        assert self.process is not None
        start = time.monotonic()
        self.first.send_signal(signal.Signals[self.image.config["StopSignal"]])
        code = self.process.wait(grace_s)
        return code, time.monotonic() - start

    def kill(self) -> None:
        """As when a machine loses its power; nothing if it does not run."""
        if self.process is not None and self.process.poll() is None:
            with suppress(psutil.NoSuchProcess, StopIteration):
                self.first.kill()
            self.process.wait(10)


def run(*command: str) -> None:
    subprocess.run(command, check=True)
