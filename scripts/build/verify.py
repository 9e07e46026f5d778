"""Check a finished archive from the file itself: extract it, load it by its own handlers, ask its samples."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from handlers.samples import Sample, differences
from scripts.build.reader import Archive, read_archive
from scripts.core.errors import UserError

TIMEOUT_S = 600


def verify(path: Path, reference: Sequence[Sequence[float]] = ()) -> Archive:
    """Raises UserError listing every sample answered otherwise than the recipe, or plain transformers, expects.

    reference: probabilities by plain transformers, per sample.
    """
    archive = read_archive(path)
    answers = selfcheck(path, f"{archive.name} {archive.version}")
    faults = []
    for i, (sample, answer) in enumerate(zip(archive.samples, answers, strict=True)):
        faults += [f"samples[{i}]: {fault}" for fault in differences(sample, answer, archive.tolerance)]
        if reference:
            plain = Sample(
                sample.request, {"prediction": answer.get("prediction"), "probabilities": list(reference[i])}
            )
            faults += [
                f"samples[{i}], against plain transformers: {fault}"
                for fault in differences(plain, answer, archive.tolerance)
            ]
    if faults:
        head = f"{archive.name} {archive.version}: the archive does not answer its samples as expected; it was not kept"
        cure = "if only the last digits differ, set `precision: float32` or a wider `sample_tolerance` in model.yaml"
        raise UserError("\n  ".join([head, *faults, cure]))
    return archive


def selfcheck(path: Path, title: str) -> list[dict[str, Any]]:
    """The archive's own answers to its samples, from a process that sees the archive's copy of `handlers/` alone."""
    with tempfile.TemporaryDirectory(prefix="marctl-verify-") as root:
        with zipfile.ZipFile(path) as file:
            file.extractall(root)
        env = {**os.environ, "PYTHONPATH": root, "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        try:
            done = subprocess.run(
                [sys.executable, "-m", "handlers.selfcheck"],
                cwd=root,
                env=env,
                capture_output=True,
                text=True,
                check=False,
                timeout=TIMEOUT_S,
            )
        except subprocess.TimeoutExpired as err:
            raise UserError(f"{title}: no answer to its samples within {TIMEOUT_S} s; it was not kept") from err
    try:
        result = json.loads(done.stdout)
    except ValueError as err:
        last = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        raise UserError(f"{title}: the archive could not be checked: {last}") from err
    if "error" in result:
        raise UserError(f"{title}: the archive does not load: {result['error']}; it was not kept")
    return list(result["answers"])
