"""Answer the samples of an extracted archive, as a worker would but without a server, and compare the answers.

    cd extracted-archive && python -m marctl_handlers.selfcheck [REFERENCE.json]

Prints one JSON line: `{"answers": [...], "faults": [...]}`, or `{"error": ...}` with exit code 1 if the archive does
not load. REFERENCE.json holds what the model's own library answers, per sample, and is compared, too.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import yaml

from marctl_handlers.archive import answers, differences, load, read_metadata, tolerance_of
from marctl_handlers.core.errors import LoadError
from marctl_handlers.core.messages import Model
from marctl_handlers.core.pipeline import Pipeline
from marctl_handlers.core.samples import Sample, read_json, read_samples


def check(root: Path, reference: list[dict[str, Any]]) -> dict[str, Any]:
    """The decoded answers to `samples.json`, and where they depart from what was expected. Raises LoadError."""
    model = msgspec.json.decode((root / "MAR-INF" / "MANIFEST.json").read_bytes())["model"]
    config = yaml.safe_load((root / str(model["configFile"])).read_text())
    pipeline = load(root, Model(model["modelName"], model["modelVersion"]), config.get("handler"))
    samples, tolerance = read_samples(root), tolerance_of(read_metadata(root))
    given = answers(pipeline, [sample.request for sample in samples])
    faults = faults_of(pipeline, samples, given, tolerance, "")
    if reference:
        plain = [Sample(sample.request, answer) for sample, answer in zip(samples, reference, strict=True)]
        uncalibrated = given if pipeline.task.calibration is None else answers_without_calibration(pipeline, samples)
        faults += faults_of(pipeline, plain, uncalibrated, tolerance, ", against the model's own library")
    return {"answers": given, "faults": faults}


def answers_without_calibration(pipeline: Pipeline, samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """What the model itself says, as its own library does."""
    pipeline.task.calibration = None
    return answers(pipeline, [sample.request for sample in samples])


def faults_of(
    pipeline: Pipeline, samples: Sequence[Sample], given: Sequence[dict[str, Any]], tolerance: float, against: str
) -> list[str]:
    """Where the answers depart from what the samples expect."""
    return [
        f"samples[{i}]{against}: {fault}"
        for i, (sample, answer) in enumerate(zip(samples, given, strict=True))
        for fault in differences(type(pipeline.task), sample, answer, tolerance)
    ]


def main(arguments: list[str]) -> int:
    """Exit code of the check; everything but the one line goes to standard error."""
    try:
        reference = read_json(Path(arguments[0]), list[dict[str, Any]], []) if arguments else []
        result: dict[str, Any] = check(Path.cwd(), reference)
    except LoadError as err:
        result = {"error": str(err)}
    except Exception as err:
        traceback.print_exc()
        result = {"error": f"{type(err).__name__}: {err}"}
    sys.stdout.write(msgspec.json.encode(result).decode() + "\n")
    return 1 if "error" in result else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
