"""Answer the samples of an extracted archive, as a worker would but without a server.

    cd extracted-archive && python -m handlers.selfcheck

Prints one JSON line: the answers, in order, or `{"error": ...}` with exit code 1 if the archive does not load.
"""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Any

import msgspec
import yaml

from handlers.archive import answers, load
from handlers.core.errors import LoadError
from handlers.core.messages import Model
from handlers.core.samples import read_samples


def answers_of(root: Path) -> list[Any]:
    """The decoded answers to `samples.json`; raises LoadError if the archive does not load."""
    model = msgspec.json.decode((root / "MAR-INF" / "MANIFEST.json").read_bytes())["model"]
    config = yaml.safe_load((root / str(model["configFile"])).read_text())
    pipeline = load(root, Model(model["modelName"], model["modelVersion"]), config.get("handler"))
    return answers(pipeline, [sample.request for sample in read_samples(root)])


def main() -> int:
    """Exit code of the check; everything but the one line goes to standard error."""
    try:
        result: Any = {"answers": answers_of(Path.cwd())}
    except LoadError as err:
        result = {"error": str(err)}
    except Exception as err:
        traceback.print_exc()
        result = {"error": f"{type(err).__name__}: {err}"}
    sys.stdout.write(msgspec.json.encode(result).decode() + "\n")
    return 1 if "error" in result else 0


if __name__ == "__main__":
    raise SystemExit(main())
