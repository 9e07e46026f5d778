"""ONNX models, which is how those of scikit-learn, LightGBM and TensorFlow arrive."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from marctl_handlers.core.errors import LoadError
from marctl_handlers.tasks.tabular.runtimes.runtime import Encoded, by_row, lacks, unreadable

FLOAT = "tensor(float)"
QUIET = 3
"""onnxruntime's log level for errors and nothing below."""


class OnnxRuntime:
    """One input of float32, shape (rows, columns); of the outputs, the last one of floating-point numbers."""

    def __init__(self, path: Path, threads: int) -> None:
        """Raises LoadError."""
        try:
            import onnxruntime
        except ImportError as err:
            raise lacks("onnxruntime", "onnx", err) from err
        self.name = f"onnxruntime {onnxruntime.__version__}"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = QUIET
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as err:  # its own exceptions have no common parent but this
            raise unreadable(path, "ONNX model", err) from err
        self._input, self.columns = input_of(path, self.session.get_inputs())
        self._outputs = [output_of(path, self.session.get_outputs())]

    def scores(self, encoded: Encoded) -> NDArray[Any]:
        [found] = self.session.run(self._outputs, {self._input: encoded})
        return by_row(found)


def input_of(path: Path, inputs: list[Any]) -> tuple[str, int | None]:
    """Name and width of the one input. Raises LoadError."""
    if len(inputs) != 1 or inputs[0].type != FLOAT:
        found = ", ".join(f"{one.name}: {one.type}" for one in inputs)
        raise LoadError(
            f"{path.name} has the inputs {found}; expected one of float32, shape (rows, columns), for the encoded "
            "features; export the model without its preprocessing, which the feature specification does"
        )
    width = inputs[0].shape[-1] if len(inputs[0].shape) == 2 else None
    return inputs[0].name, width if isinstance(width, int) else None


def output_of(path: Path, outputs: list[Any]) -> str:
    """Name of the output with probabilities or values. Raises LoadError."""
    found = [one.name for one in outputs if one.type in (FLOAT, "tensor(double)")]
    if not found:
        there = ", ".join(f"{one.name}: {one.type}" for one in outputs)
        raise LoadError(
            f"{path.name} has the outputs {there}; expected a tensor of floating-point numbers; export a classifier "
            "with zipmap off (skl2onnx: options={'zipmap': False}; onnxmltools: zipmap=False)"
        )
    return str(found[-1])
