"""From an .onnx file to OpenVINO's pair of files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from marctl.core.errors import UserError


def write_openvino(source: Path, target: Path) -> None:
    """`target`: the .xml file; the .bin stands beside it. Raises UserError."""
    openvino = library()
    try:
        openvino.save_model(openvino.Core().read_model(str(source)), str(target), compress_to_fp16=False)
    except RuntimeError as err:  # also for a full disk
        last = str(err).strip().splitlines()[-1]
        raise UserError(f"OpenVINO cannot take this model, or write {target}: {last}") from err


def library() -> Any:
    """The package openvino, kept from sending events to Google Analytics, which its mere import does.

    Without openvino_telemetry it takes a stub of its own (openvino/tools/ovc/telemetry_stub.py).
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None makes its import fail
    import openvino

    return openvino
