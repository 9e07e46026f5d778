"""Answer the samples of an extracted archive, as a worker would but without a server, and compare the answers.

    cd extracted-archive && python -m handlers.selfcheck [REFERENCE.json]

Prints one JSON line: `{"answers": [...], "faults": [...]}`, or `{"error": ...}` with exit code 1 if the archive does
not load. REFERENCE.json holds what the model's own library answers, per sample, and is compared, too.
"""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Any

import msgspec
import yaml

from handlers.archive import answers, differences, load, read_metadata, tolerance_of
from handlers.core.errors import LoadError
from handlers.core.messages import Model
from handlers.core.samples import Sample, read_json, read_samples


def check(root: Path, reference: list[dict[str, Any]]) -> dict[str, Any]:
    """The decoded answers to `samples.json`, and where they depart from what was expected. Raises LoadError."""
    model = msgspec.json.decode((root / "MAR-INF" / "MANIFEST.json").read_bytes())["model"]
    config = yaml.safe_load((root / str(model["configFile"])).read_text())
    pipeline = load(root, Model(model["modelName"], model["modelVersion"]), config.get("handler"))
    samples, tolerance = read_samples(root), tolerance_of(read_metadata(root))
    given = answers(pipeline, [sample.request for sample in samples])
    task, faults = type(pipeline.task), []
    for i, (sample, answer) in enumerate(zip(samples, given, strict=True)):
        faults += [f"samples[{i}]: {fault}" for fault in differences(task, sample, answer, tolerance)]
        if reference:
            plain = Sample(sample.request, reference[i])
            found = differences(task, plain, answer, tolerance)
            faults += [f"samples[{i}], against the model's own library: {fault}" for fault in found]
    return {"answers": given, "faults": faults}


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
