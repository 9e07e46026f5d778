"""Check a finished archive from the file itself: extract it, load it by its own handlers, ask its samples."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from marctl.build.extract import extract
from marctl.build.reader import Archive, read_archive
from marctl.core.archive_code import code_package
from marctl.core.children import Children
from marctl.core.errors import UserError

TIMEOUT_S = 600
REFERENCE_FILE = "reference.json"


def verify(path: Path, reference: Sequence[Mapping[str, Any]] = (), children: Children | None = None) -> Archive:
    """Raises UserError listing every sample answered otherwise than the recipe, or the reference, expects.

    reference: what the model's own library answers, per sample, as a sample's `expected`. `children`: whose process
    answers.
    """
    archive = read_archive(path)
    found = selfcheck(archive, reference, children)
    title, faults = f"{archive.name} {archive.version}", found["faults"]
    if faults and found["log"]:
        raise UserError(f"{title}: the model fails on its samples; it was not kept: {found['log'].splitlines()[-1]}")
    if faults:
        head = f"{title}: the archive does not answer its samples as expected; it was not kept"
        cure = (
            f"if its weights have changed, record the answers anew: marctl build {title} --record\n"
            "  if only the last digits differ, set `precision: float32` or a wider `sample_tolerance` in model.yaml"
        )
        raise UserError("\n  ".join([head, *faults, cure]))
    return archive


def selfcheck(
    archive: Archive, reference: Sequence[Mapping[str, Any]] = (), children: Children | None = None
) -> dict[str, Any]:
    """`answers` to the samples, `faults`, and the `log` of what failed.

    From a process that sees the archive's own copy of the handlers alone, and has one thread, as a worker has: several
    archives may be checked at once.
    """
    title = f"{archive.name} {archive.version}"
    with tempfile.TemporaryDirectory(prefix="marctl-verify-") as work:
        root, beside = Path(work, "archive"), Path(work, REFERENCE_FILE)
        extract(archive, root)
        beside.write_text(json.dumps(list(reference)))
        env = {
            "OMP_NUM_THREADS": "1",
            **os.environ,
            "PYTHONPATH": str(root),
            "HF_HUB_OFFLINE": "1",
            "TQDM_DISABLE": "1",
        }
        try:
            command = [sys.executable, "-m", f"{code_package(root)}.selfcheck", str(beside)]
            done = (children or Children()).run(command, folder=root, env=env, timeout_s=TIMEOUT_S)
        except subprocess.TimeoutExpired as err:
            raise UserError(f"{title}: no answer to its samples within {TIMEOUT_S} s; it was not kept") from err
    try:
        result: dict[str, Any] = json.loads(done.stdout)
    except ValueError as err:
        last = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        raise UserError(f"{title}: the archive could not be checked: {last}") from err
    if "error" in result:
        raise UserError(f"{title}: the archive does not load: {result['error']}; it was not kept")
    failed = "failed, request" in done.stderr
    return result | {"log": done.stderr.strip() if failed else ""}
