"""A version's model in other runtimes, with which `loadtest.speed` compares the ones that are served.

Each stands in place of a TorchScorer's model, so that rows are sorted by length and padded to the longest of their few
neighbours, and the last layer computes its first token only. ONNX Runtime and OpenVINO get the model from an ONNX file.
None of the packages is a dependency of the project; MissingPackage tells what to install.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
"""Each int64, (rows, 1, tokens)."""
Run = Callable[[dict[str, Any]], Any]
"""Arrays by the names of INPUTS -> logits, float32, (rows, 1)."""


class MissingPackage(Exception):
    """A runtime's package is not installed."""


def package(name: str) -> Any:
    """The module, or MissingPackage with the command that installs what its runtime needs."""
    try:
        return import_module(name)
    except ImportError as err:
        runtime = name.partition(".")[0]
        needed = " ".join(dict.fromkeys(("onnx", "onnxscript", runtime)))
        raise MissingPackage(f"this variant needs {runtime} ({err}); pip install {needed}") from err


class Logits(nn.Module):
    """A model's logits alone; without `type_ids` it takes no token_type_ids."""

    def __init__(self, model: Any, type_ids: bool) -> None:
        super().__init__()
        self.model = model
        self.type_ids = type_ids

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        types = {"token_type_ids": token_type_ids} if self.type_ids else {}
        logits: Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask, **types).logits
        return logits


class Exported:
    """Called like a Hugging Face model, computed elsewhere."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def __call__(self, input_ids: Tensor, **given: Tensor) -> SimpleNamespace:
        mask = given.get("attention_mask", torch.ones_like(input_ids))
        types = given.get("token_type_ids", torch.zeros_like(input_ids))
        arrays = (tensor.numpy() for tensor in (input_ids, mask, types))
        return SimpleNamespace(logits=torch.from_numpy(self._run(dict(zip(INPUTS, arrays, strict=True)))))


def onnxruntime(model: Any, type_ids: bool, threads: int, int8: bool = False) -> Exported:
    """ONNX Runtime on the processor, in float32.

    `int8`: weights in 8-bit integers by output channel, inputs by their range in the pass at hand (`quantize_dynamic`),
    so that a row's answer depends a little on its neighbours.
    """
    ort = package("onnxruntime")
    with tempfile.TemporaryDirectory(prefix="exported-") as folder:
        path = export(model, type_ids, Path(folder, "model.onnx"))
        if int8:
            quantization = package("onnxruntime.quantization")
            made = package("onnx").load(path)
            # The exporter notes shapes that torch deduced, and the quantizer's own, of folded weights, differ.
            made.graph.ClearField("value_info")
            weights = quantization.QuantType.QInt8
            logging.getLogger().setLevel(logging.ERROR)  # it advises an optimizer that fails on this exporter's graphs
            quantization.quantize_dynamic(made, path, weight_type=weights, per_channel=True)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return Exported(lambda arrays: session.run(None, arrays)[0])


def openvino(model: Any, type_ids: bool, threads: int, precision: str) -> Exported:
    """OpenVINO on the processor; `precision` (`bf16` or `f32`) is what it computes in."""
    core = package("openvino").Core()
    with tempfile.TemporaryDirectory(prefix="exported-") as folder:
        path = export(model, type_ids, Path(folder, "model.onnx"))
        options = {
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,  # two workers would be pinned to one core
        }
        request = core.compile_model(str(path), "CPU", options).create_infer_request()
    return Exported(lambda arrays: request.infer(arrays, share_inputs=True)[0])


def export(model: Any, type_ids: bool, path: Path) -> Path:
    """A float32 model as an ONNX file, for any number of rows and tokens."""
    package("onnxscript")
    # Three tensors: of one given thrice the exporter would make one input.
    examples = tuple(torch.ones(3, 1, 7, dtype=torch.int64) for _ in INPUTS)
    dynamic = {0: torch.export.Dim("rows", min=1), 2: torch.export.Dim("tokens", min=2)}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about itself
        torch.onnx.export(
            Logits(model, type_ids).eval(),
            examples,
            path,
            dynamo=True,
            dynamic_shapes=dict.fromkeys(INPUTS, dynamic),
            input_names=list(INPUTS),
            output_names=["logits"],
            external_data=False,
            verbose=False,
        )
    return path


def compiled(model: Any) -> Any:
    """torch.compile for any shape, its weights laid out at compilation for oneDNN."""
    return torch.compile(model, dynamic=True, options={"freezing": True})


def replace_model(scorer: Any, runtime: str, threads: int) -> None:
    """Let another runtime compute a TorchScorer's model, which must be float32 unless the runtime is `compiled`."""
    runtimes: dict[str, Callable[[], Any]] = {
        "compiled": lambda: compiled(scorer.model),
        "onnxruntime": lambda: onnxruntime(scorer.model, scorer.has_type_ids, threads),
        "onnxruntime-int8": lambda: onnxruntime(scorer.model, scorer.has_type_ids, threads, int8=True),
        "openvino": lambda: openvino(scorer.model, scorer.has_type_ids, threads, "f32"),
        "openvino-bfloat16": lambda: openvino(scorer.model, scorer.has_type_ids, threads, "bf16"),
    }
    scorer.model = runtimes[runtime]()
