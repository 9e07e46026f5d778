"""Weights in 8 bits, computed with in float: a quarter of the file, and no range of any activation to be learned.

Each output channel of a matrix and each row of a table of embeddings keeps a scale of its own. DequantizeLinear is a
standard operator, which onnxruntime and OpenVINO read alike.

Activations stay in float because of mcqa 2.0's large ones: with weights alone in 8 bits 6 of 1,000 dev questions got
another choice, with onnxruntime's quantize_dynamic 40 (and half the time), with its quantize_static, on ranges of 200
training questions, 129.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MIDDLE = 127
"""The largest step of a weight."""
LEAST_VALUES = 1024
"""Of a matrix that is worth it."""


def shrink_weights(path: Path) -> None:
    """Rewrite an .onnx file."""
    import onnx
    from onnx import helper, numpy_helper

    model: Any = onnx.load(path)
    graph = model.graph
    axes = axes_of(graph)
    known = {one.name: one for one in graph.initializer if one.name in axes}
    restored = []
    for name, tensor in known.items():
        values = numpy_helper.to_array(tensor)
        if values.ndim != 2 or values.dtype != np.float32 or values.size < LEAST_VALUES:
            continue
        steps, scales = on_grid(values, axes[name])
        graph.initializer.remove(tensor)
        graph.initializer.extend(
            [numpy_helper.from_array(steps, f"{name}.steps"), numpy_helper.from_array(scales, f"{name}.scales")]
        )
        inputs = [f"{name}.steps", f"{name}.scales"]
        restored.append(helper.make_node("DequantizeLinear", inputs, [name], f"{name}.restore", axis=axes[name]))
    nodes = [*restored, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    path.write_bytes(model.SerializeToString(deterministic=True))


def axes_of(graph: Any) -> dict[str, int]:
    """Names of the matrices that products and look-ups read, and the axis along which each has its scales."""
    found = {}
    for node in graph.node:
        if node.op_type == "Gather":
            found[node.input[0]] = 0
        elif node.op_type in ("MatMul", "Gemm"):
            turned = any(one.name == "transB" and one.i for one in node.attribute)
            found[node.input[1]] = 0 if turned else 1
    return found


def on_grid(values: NDArray[np.float32], axis: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Whole steps, and the size of one for each place along the axis."""
    largest = np.abs(values).max(axis=1 - axis, keepdims=True)
    scales = (np.maximum(largest, 1e-12) / MIDDLE).astype(np.float32)
    steps = np.clip(np.rint(values / scales), -MIDDLE, MIDDLE).astype(np.int8)
    return steps, scales.reshape(-1)
