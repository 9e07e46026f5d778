"""From an .onnx file to OpenVINO's pair of files."""

from __future__ import annotations

from pathlib import Path

from marctl.core.errors import UserError


def write_openvino(source: Path, target: Path) -> None:
    """`target`: the .xml file; the .bin stands beside it. Raises UserError."""
    import openvino

    try:
        openvino.save_model(openvino.Core().read_model(str(source)), str(target), compress_to_fp16=False)
    except RuntimeError as err:  # also for a full disk
        last = str(err).strip().splitlines()[-1]
        raise UserError(f"OpenVINO cannot take this model, or write {target}: {last}") from err
