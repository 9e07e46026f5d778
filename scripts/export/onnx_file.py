"""From a torch module to an .onnx file of standard operators."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from marctl.core.errors import UserError
from marctl_handlers.core.portable import Portable

OPSET = 18
"""Every onnxruntime since 1.14 (2023) reads it."""
ROWS, TOKENS = 3, 12
"""Of the example that the export follows; both are free in the file."""
MOST_BYTES = 2 << 30
"""Of a file in protobuf's format, weights included."""


def write_onnx(portable: Portable, path: Path) -> None:
    """Rows and tokens are free dimensions. Raises UserError for a model that PyTorch cannot export."""
    if sum(value.nbytes for value in portable.module.state_dict().values()) >= MOST_BYTES:
        raise UserError("the model has 2 GiB of weights or more, which one .onnx file cannot hold")
    free = {0: torch.export.Dim("rows"), 1: torch.export.Dim("tokens")}
    try:
        with quiet():
            program = torch.onnx.export(
                portable.module,
                example(portable),
                dynamo=True,
                input_names=list(portable.inputs),
                output_names=[portable.output],
                dynamic_shapes=tuple(free for _ in portable.inputs),
                opset_version=OPSET,
                verbose=False,
            )
            assert program is not None
            program.save(path, external_data=False)
    except (torch.onnx.OnnxExporterError, RuntimeError) as err:
        first = str(err).strip().partition("\n")[0]
        raise UserError(f"PyTorch cannot export this kind of model to ONNX: {first}") from err
    strip(path)


def example(portable: Portable) -> tuple[torch.Tensor, ...]:
    """A row that is not full among full ones, so that masks are followed."""
    inputs = {name: torch.zeros(ROWS, TOKENS, dtype=torch.int64) for name in portable.inputs}
    inputs["input_ids"] += torch.arange(TOKENS)
    inputs["attention_mask"] += 1
    inputs["attention_mask"][1, TOKENS // 2 :] = 0
    return tuple(inputs.values())


def strip(path: Path) -> None:
    """Leave out what the exporter notes of this machine's files, so that equal models are equal bytes."""
    import onnx

    model: Any = onnx.load(path)
    model.ClearField("doc_string")
    del model.metadata_props[:]
    for owner in (model.graph, *model.graph.node, *model.graph.initializer, *model.graph.value_info):
        owner.ClearField("doc_string")
        del owner.metadata_props[:]
    path.write_bytes(model.SerializeToString(deterministic=True))


@contextmanager
def quiet() -> Iterator[None]:
    """Without the exporter's remarks on parts that no text model has."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
