"""Python and the distributions that this one requires: examined first, with nothing that might be missing itself."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterator, Sequence

from packaging.requirements import Requirement

from marctl.doctor.finding import Finding

DISTRIBUTION = "torchserve-marctl"
OLDEST, NEWEST = (3, 11), (3, 13)
"""Of Python, with which it has been installed and run."""


def libraries() -> list[Finding]:
    return [python(sys.version_info[:3]), *distributions(importlib.metadata.requires(DISTRIBUTION) or ())]


def python(version: Sequence[int]) -> Finding:
    """What a version of Python is good for."""
    told = ".".join(map(str, version))
    oldest, newest = (".".join(map(str, each)) for each in (OLDEST, NEWEST))
    if tuple(version[:2]) < OLDEST:
        return Finding("Python", "error", told, f"make the environment with Python {oldest} to {newest}")
    if tuple(version[:2]) > NEWEST:
        return Finding(
            "Python", "warning", told, f"tested with {oldest} to {newest}; make the environment with one of these"
        )
    return Finding("Python", "ok", f"{told}, {sys.executable}")


def distributions(required: Sequence[str]) -> Iterator[Finding]:
    """One finding for each that is missing or of another version, else one for all; extras are left out."""
    wanted = [requirement for requirement in map(Requirement, required) if applies(requirement)]
    faults = [fault for requirement in wanted if (fault := fault_of(requirement))]
    yield from faults
    if not faults:
        own = importlib.metadata.version(DISTRIBUTION)
        yield Finding("libraries", "ok", f"{DISTRIBUTION} {own} and the {len(wanted)} that it requires")


def applies(requirement: Requirement) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": ""})


def fault_of(requirement: Requirement) -> Finding | None:
    """None for one that is there in a version that is asked for."""
    cure = f"pip install '{requirement.name}{requirement.specifier}'"
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return Finding("libraries", "error", f"{requirement.name} is not installed", cure)
    if requirement.specifier.contains(version, prereleases=True):
        return None
    return Finding("libraries", "error", f"{requirement.name} {version}, {requirement.specifier} is required", cure)
