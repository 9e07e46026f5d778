from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from marctl_handlers.text.processor import KINDS, PLAIN, Processor, kind_of

EPYC_7003 = {"avx": True, "avx2": True, "fma3": True}
CASCADE_LAKE = {**EPYC_7003, "avx512_bw": True, "avx512_vl": True, "avx512_dq": True, "avx512_vnni": True}
EPYC_9005 = {**CASCADE_LAKE, "avx512_bf16": True, "avx_vnni": True}
GRAVITON_3 = {"neon": True, "dot": True, "i8mm": True, "bf16": True}


@pytest.mark.parametrize(
    ("capabilities", "cap", "name", "numbers"),
    [
        (EPYC_9005, "", "AVX-512 with bfloat16", ("int8", "bfloat16")),
        (CASCADE_LAKE, "", "AVX-512 VNNI", ("int8", "float32")),
        ({**CASCADE_LAKE, "avx512_vnni": False}, "", "AVX-512", ("int8", "float32")),
        ({**EPYC_7003, "avx_vnni": True}, "", "AVX-VNNI", ("int8", "float32")),
        (EPYC_7003, "", "AVX2", ("int8", "float32")),
        (GRAVITON_3, "", "ARM with bfloat16", ("bfloat16", "bfloat16")),
        ({"neon": True}, "", "ARM", ("float32", "float32")),
        ({}, "", PLAIN.name, ("float32", "float32")),
        (EPYC_9005, "AVX2", "AVX2", ("int8", "float32")),
        (EPYC_9005, "avx2_vnni", "AVX-VNNI", ("int8", "float32")),
        (EPYC_9005, "AVX512_CORE", "AVX-512", ("int8", "float32")),
        (EPYC_9005, "SSE41", PLAIN.name, ("float32", "float32")),
        (EPYC_9005, "DEFAULT", "AVX-512 with bfloat16", ("int8", "bfloat16")),
    ],
)
def test_a_processor_is_of_the_first_kind_that_it_can_do(
    capabilities: dict[str, bool], cap: str, name: str, numbers: tuple[str, str]
) -> None:
    kind = kind_of(capabilities, cap)
    assert kind.name == name
    assert (kind.numbers("int8"), kind.numbers("auto"), kind.numbers("float32")) == (*numbers, "float32")


def test_what_was_not_measured_says_so() -> None:
    assert [str(kind) for kind in KINDS if "ARM" in kind.name] == [
        "ARM with bfloat16 (not measured)",
        "ARM (not measured)",
    ]


# The largest input in every place, times the largest step of a weight: no sum of products can be further from zero.
EXTREME = """
import torch
from marctl_handlers.text.processor import Processor
kind = Processor.here()
for width in (2, 31, 384, 1536):
    for sign in (1, -1):
        inputs = torch.full((40, width), 255, dtype=torch.uint8)
        weights = torch.full((48, width), sign * kind.int8_middle, dtype=torch.int8)
        packed, zeros = torch.ops.onednn.qlinear_prepack(weights, None), torch.zeros(48, dtype=torch.int64)
        given = (inputs, 1.0, 0, packed, torch.ones(48), zeros, None, 1.0, 0, torch.float32, "none", [], "")
        found = torch.ops.onednn.qlinear_pointwise(*given)
        assert bool((found == sign * 255 * kind.int8_middle * width).all()), (kind.name, width, sign)
print(kind.name)
"""


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.int8_middle], ids=str)
def test_no_sum_of_8_bit_products_saturates(kind: Processor) -> None:
    """Against integers, in a process held to the instructions of each kind that this machine can act as."""
    if kind_of(torch.cpu.get_capabilities(), kind.cap) != kind:
        pytest.skip("this machine lacks these instructions")
    environ = os.environ | {"ONEDNN_MAX_CPU_ISA": kind.cap}
    done = subprocess.run(
        [sys.executable, "-c", EXTREME], env=environ, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, kind.name), done.stderr
