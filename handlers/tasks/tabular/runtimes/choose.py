"""The runtime is found from the model's file."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from pathlib import Path

from marctl_handlers.core.errors import LoadError
from marctl_handlers.tasks.tabular.runtimes.runtime import Runtime, refuse_columns

MODEL = "model"
SUFFIXES = {".json": "xgboost", ".ubj": "xgboost", ".onnx": "onnx", ".pt": "torch"}
"""Of the file `model` in an archive's folder."""
LIBRARIES = {"xgboost": ("xgboost-cpu", "xgboost"), "onnx": ("onnxruntime", "onnxruntime-gpu"), "torch": ("torch",)}
"""Distributions that a runtime may come from."""


def model_file(folder: Path) -> Path:
    """The one model in a folder. Raises LoadError."""
    found = [path for path in sorted(folder.glob(f"{MODEL}.*")) if path.suffix in SUFFIXES]
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        wanted = ", ".join(f"{MODEL}{suffix}" for suffix in SUFFIXES)
        raise LoadError(f"expected exactly one of {wanted} in the model's folder, found {names}")
    return found[0]


def load_runtime(folder: Path, threads: int, columns: Sequence[str], device: str = "cpu") -> Runtime:
    """The model in a folder, ready for encoded matrices of these columns. Raises LoadError."""
    path = model_file(folder)
    runtime = open_file(path, threads, columns, device)
    refuse_columns(runtime, len(columns))
    return runtime


def open_file(path: Path, threads: int, columns: Sequence[str], device: str) -> Runtime:
    """Models of PyTorch compute on the device, all others on the processor."""
    match SUFFIXES[path.suffix]:
        case "xgboost":
            from marctl_handlers.tasks.tabular.runtimes.xgboost_runtime import XGBoostRuntime

            return XGBoostRuntime(path, threads, columns)
        case "onnx":
            from marctl_handlers.tasks.tabular.runtimes.onnx_runtime import OnnxRuntime

            return OnnxRuntime(path, threads)
        case _:
            from marctl_handlers.tasks.tabular.runtimes.torch_runtime import TorchRuntime

            return TorchRuntime(path, threads, device)


def device_of(folder: Path, device: str, wanted: str) -> str:
    """Where the model in a folder computes on a worker of this device. Raises LoadError where it cannot as `wanted`."""
    kind = SUFFIXES[model_file(folder).suffix]
    if kind == "torch":
        return device
    if wanted == "cuda":
        raise LoadError(
            f"its recipe says `device: cuda`, but models of {kind} compute on the processor here; remove the line, or "
            "give the version a PyTorch model (.pt)"
        )
    return "cpu"


def libraries_of(folder: Path) -> tuple[str, ...]:
    """Installed distributions that the model in a folder needs. Raises LoadError."""
    kind = SUFFIXES[model_file(folder).suffix]
    installed = {distribution.metadata["Name"] for distribution in importlib.metadata.distributions()}
    return tuple(name for name in LIBRARIES[kind] if name in installed)[:1]
