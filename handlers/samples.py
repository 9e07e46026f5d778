"""The sample requests that an archive carries, and whether a version answers them as it did when it was built."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from handlers.core.errors import LoadError
from handlers.core.task import Request, Task
from handlers.loading import METADATA_FILE

SAMPLES_FILE = "samples.json"
DEFAULT_TOLERANCE = 0.05
"""For an archive whose metadata names none."""


@dataclass(frozen=True)
class Sample:
    """A request body and what must come back: `prediction`, and `probabilities` where they are known."""

    request: dict[str, Any]
    expected: dict[str, Any]


def read_samples(root: Path) -> list[Sample]:
    """The samples of an archive extracted to `root`; none if torch-model-archiver alone laid it out."""
    path = root / SAMPLES_FILE
    return msgspec.json.decode(path.read_bytes(), type=list[Sample]) if path.exists() else []


def answers(task: Task[Any, Any], samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """The decoded answers, in order, all asked in one batch."""
    requests = [Request(msgspec.json.encode(sample.request), f"sample-{i}") for i, sample in enumerate(samples)]
    return [msgspec.json.decode(reply.body) for reply in task.answer(requests)]


def read_tolerance(root: Path) -> float:
    """By how much a probability may differ, for an archive extracted to `root`."""
    path = root / METADATA_FILE
    metadata: dict[str, Any] = msgspec.json.decode(path.read_bytes()) if path.exists() else {}
    return float(metadata.get("sample_tolerance", DEFAULT_TOLERANCE))


def check_samples(task: Task[Any, Any], root: Path) -> None:
    """Ask a task the samples of its archive, extracted to `root`.

    Raises LoadError at the first wrong answer: a version on damaged weights or another library must take no request.
    """
    samples, tolerance = read_samples(root), read_tolerance(root)
    for i, (sample, answer) in enumerate(zip(samples, answers(task, samples), strict=True)):
        if faults := differences(sample, answer, tolerance):
            raise LoadError(
                f"it answers its sample {i} wrongly: {'; '.join(faults)}; rebuild the archive with `marctl build`"
            )


def differences(sample: Sample, answer: Mapping[str, Any], tolerance: float) -> list[str]:
    """Where an answer to a sample's request departs from what was expected; empty if it does not.

    Two choices whose expected probabilities lie within twice the tolerance may change places.
    """
    expected = sample.expected
    if "error" in answer:
        return [f"the answer is an error: {answer['error']}: {answer.get('detail', '')}"]
    found = []
    wanted, given = expected.get("probabilities"), answer.get("probabilities") or []
    chosen, right = answer.get("prediction"), expected["prediction"]
    tied = wanted is not None and chosen in range(len(wanted)) and wanted[chosen] >= wanted[right] - 2 * tolerance
    if chosen != right and not tied:
        found.append(f"prediction is {chosen}, expected {right}")
    if wanted is not None:
        worst = max((abs(a - b) for a, b in zip(wanted, given, strict=False)), default=0.0)
        if len(wanted) != len(given) or not worst <= tolerance:
            found.append(f"probabilities are {given}, expected {wanted} within {tolerance:g}")
    return found
