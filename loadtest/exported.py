"""A version's model in other runtimes, with which `loadtest.speed` compares the ones that are served.

Each stands in place of a TorchScorer's model, so that rows are sorted by length and padded to the longest of their few
neighbours, and the last layer computes its first token only. ONNX Runtime and OpenVINO get the model from an ONNX file.
None of the packages is a dependency of the project; MissingPackage tells what to install.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
"""Each int64, (rows, 1, tokens)."""
Arrays = dict[str, Any]
"""A pass by the names of INPUTS."""
Run = Callable[[Arrays], Any]
"""Arrays by the names of INPUTS -> logits, float32, (rows, 1)."""
NEEDED = {"nncf": ("openvino",)}
"""What a runtime's package works with, besides the exporter's."""


class MissingPackage(Exception):
    """A runtime's package is not installed."""


def package(name: str) -> Any:
    """The module, or MissingPackage with the command that installs what its runtime needs."""
    try:
        return import_module(name)
    except ImportError as err:
        runtime = name.partition(".")[0]
        needed = " ".join(dict.fromkeys(("onnx", "onnxscript", *NEEDED.get(runtime, ()), runtime)))
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


def arrays(input_ids: Tensor, **given: Tensor) -> Arrays:
    """A Hugging Face model's arguments, with the ones that it may leave out."""
    mask = given.get("attention_mask", torch.ones_like(input_ids))
    types = given.get("token_type_ids", torch.zeros_like(input_ids))
    return dict(zip(INPUTS, (tensor.numpy() for tensor in (input_ids, mask, types)), strict=True))


class Exported:
    """Called like a Hugging Face model, computed elsewhere."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def __call__(self, **given: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=torch.from_numpy(self._run(arrays(**given))))


class Recorder:
    """Called like the model, which answers; keeps the passes."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.passes: list[Arrays] = []

    def __call__(self, **given: Tensor) -> Any:
        self.passes.append(arrays(**given))
        return self.model(**given)


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


def openvino(model: Any, type_ids: bool, threads: int, precision: str, calibration: Sequence[Arrays] = ()) -> Exported:
    """OpenVINO on the processor; `precision` (`bf16` or `f32`) is what it computes in.

    With passes for `calibration`, weights and inputs of products are 8-bit integers, whose ranges NNCF takes from them.
    """
    core = package("openvino").Core()
    with tempfile.TemporaryDirectory(prefix="exported-") as folder:
        made = core.read_model(str(export(model, type_ids, Path(folder, "model.onnx"))))
        if calibration:
            nncf = package("nncf")
            made = nncf.quantize(
                made,
                nncf.Dataset(calibration),
                model_type=nncf.ModelType.TRANSFORMER,
                subset_size=len(calibration),
            )
        options = {
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,  # two workers would be pinned to one core
        }
        request = core.compile_model(made, "CPU", options).create_infer_request()
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


def replace_model(scorer: Any, runtime: str, threads: int, calibrate: Callable[[], object]) -> None:
    """Let another runtime compute a TorchScorer's model, which must be float32 unless the runtime is `compiled`.

    `calibrate` asks the scorer questions, of which 8-bit runtimes that need ranges beforehand take them.
    """

    def recorded() -> list[Arrays]:
        model, scorer.model = scorer.model, Recorder(scorer.model)
        calibrate()
        passes: list[Arrays] = scorer.model.passes
        scorer.model = model
        return passes

    runtimes: dict[str, Callable[[], Any]] = {
        "compiled": lambda: compiled(scorer.model),
        "onnxruntime": lambda: onnxruntime(scorer.model, scorer.has_type_ids, threads),
        "onnxruntime-int8": lambda: onnxruntime(scorer.model, scorer.has_type_ids, threads, int8=True),
        "openvino": lambda: openvino(scorer.model, scorer.has_type_ids, threads, "f32"),
        "openvino-bfloat16": lambda: openvino(scorer.model, scorer.has_type_ids, threads, "bf16"),
        "openvino-int8": lambda: openvino(scorer.model, scorer.has_type_ids, threads, "bf16", recorded()),
    }
    scorer.model = runtimes[runtime]()
