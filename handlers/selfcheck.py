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

from handlers.errors import LoadError
from handlers.loading import load_task
from handlers.task import Request


def answers(root: Path) -> list[Any]:
    """The decoded answers to `samples.json`, all asked in one batch; raises LoadError if the archive does not load."""
    model = msgspec.json.decode((root / "MAR-INF" / "MANIFEST.json").read_bytes())["model"]
    config = yaml.safe_load((root / str(model["configFile"])).read_text())
    task = load_task(root, model["modelName"], model["modelVersion"], config.get("handler"))
    samples = msgspec.json.decode((root / "samples.json").read_bytes())
    requests = [Request(msgspec.json.encode(sample["request"]), f"sample-{i}") for i, sample in enumerate(samples)]
    return [msgspec.json.decode(reply.body) for reply in task.answer(requests)]


def main() -> int:
    """Exit code of the check; everything but the one line goes to standard error."""
    try:
        result: Any = {"answers": answers(Path.cwd())}
    except LoadError as err:
        result = {"error": str(err)}
    except Exception as err:
        traceback.print_exc()
        result = {"error": f"{type(err).__name__}: {err}"}
    sys.stdout.write(msgspec.json.encode(result).decode() + "\n")
    return 1 if "error" in result else 0


if __name__ == "__main__":
    raise SystemExit(main())
