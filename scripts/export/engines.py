"""What computes rows, each on one core: PyTorch, ONNX Runtime, OpenVINO."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from marctl.export.openvino_file import library
from marctl.export.rows import Feeds
from marctl_handlers.core.portable import Portable

QUIET = 3
"""onnxruntime's log level for errors and nothing below."""


class Engine(Protocol):
    """`name`: library, version, number format."""

    name: str

    def run(self, feeds: Feeds) -> NDArray[np.float32]: ...


class TorchEngine:
    """Plain PyTorch in float32: what an export is compared with."""

    def __init__(self, portable: Portable) -> None:
        torch.set_num_threads(1)
        self.name = f"torch {torch.__version__} float32"
        self._module = portable.module

    @torch.inference_mode()
    def run(self, feeds: Feeds) -> NDArray[np.float32]:
        values: torch.Tensor = self._module(*(torch.from_numpy(value) for value in feeds.values()))
        found: NDArray[np.float32] = values.numpy()
        return found


class OnnxEngine:
    """An .onnx file."""

    def __init__(self, path: Path, precision: str) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = QUIET
        self.name = f"onnxruntime {onnxruntime.__version__} {precision}"
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(self, feeds: Feeds) -> NDArray[np.float32]:
        [found] = self._session.run(None, dict(feeds))
        return np.asarray(found, np.float32)


class OpenVinoEngine:
    """An .xml file with its .bin; what the file does not say is computed in float32."""

    def __init__(self, path: Path, precision: str) -> None:
        openvino = library()
        settings = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
        self.name = f"openvino {openvino.get_version().partition('-')[0]} {precision}"
        self._compiled: Any = openvino.Core().compile_model(str(path), "CPU", settings)

    def run(self, feeds: Feeds) -> NDArray[np.float32]:
        return np.array(self._compiled(dict(feeds))[0], np.float32)
