"""From an .onnx file to OpenVINO's pair of files."""

from __future__ import annotations

from pathlib import Path


def write_openvino(source: Path, target: Path) -> None:
    """`target`: the .xml file; the .bin stands beside it."""
    import openvino

    openvino.save_model(openvino.Core().read_model(str(source)), str(target), compress_to_fp16=False)
