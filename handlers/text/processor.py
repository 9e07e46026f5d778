"""Which numbers a processor multiplies fast: one table, of which a version takes a line when it is loaded.

Milliseconds of one product of (2000, 384) and (384, 1152), one thread, by oneDNN with the instructions of each kind,
on an AMD EPYC of 2025:

    kind                  float32  bfloat16  8-bit integers
    AVX-512 with bfloat16     17       4-6       1.9
    AVX-512 VNNI              17       21        1.8
    AVX-512                   16       21        3.5, weights of 7 bits
    AVX-VNNI                  17       82        3.6
    AVX2                      17       82        7.4, weights of 7 bits
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

MIDDLE = 127
"""The largest step of a weight in 8 bits."""
MIDDLE_OF_SEVEN = 63
"""Without VNNI, two neighbouring products of an unsigned and a signed byte are added in 16 bits, where 2 x 255 x 127
saturates and 2 x 255 x 63 does not (Intel's _mm256_maddubs_epi16; oneDNN, "Nuances of int8 computations")."""
CAPS = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI", "AVX512_CORE_BF16")
"""Values of ONEDNN_MAX_CPU_ISA, from the oldest instructions on; what is not here holds oneDNN to nothing."""


@dataclass(frozen=True, slots=True)
class Processor:
    """A kind of processor, by the instructions that decide how a model is computed best."""

    name: str
    bfloat16: bool = False
    """It multiplies bfloat16 numbers faster than float32 ones; elsewhere they are emulated, up to five times slower."""
    int8_middle: int = 0
    """The largest step of a weight in 8-bit products that are exact and faster than float32; 0 where none are."""
    measured: bool = True
    needs: tuple[str, ...] = ()
    """Names in torch.cpu.get_capabilities()."""
    cap: str = ""
    """The oldest of CAPS that allows its instructions."""

    @classmethod
    def here(cls) -> Processor:
        """The kind of this machine, or of an older one that ONEDNN_MAX_CPU_ISA names."""
        return kind_of(torch.cpu.get_capabilities(), os.environ.get("ONEDNN_MAX_CPU_ISA", ""))

    def numbers(self, precision: str) -> str:
        """What a version of this precision is computed in where its model can be packed."""
        if precision == "int8" and self.int8_middle:
            return "int8"
        if precision in ("auto", "int8"):
            return "bfloat16" if self.bfloat16 else "float32"
        return precision

    def __str__(self) -> str:
        return self.name if self.measured else f"{self.name} (not measured)"


PLAIN = Processor("without fast 8-bit or bfloat16 products")
KINDS = (
    Processor("AVX-512 with bfloat16", True, MIDDLE, True, ("avx512_vnni", "avx512_bf16"), "AVX512_CORE_BF16"),
    Processor("AVX-512 VNNI", False, MIDDLE, True, ("avx512_vnni",), "AVX512_CORE_VNNI"),
    Processor("AVX-512", False, MIDDLE_OF_SEVEN, True, ("avx512_bw", "avx512_vl", "avx512_dq"), "AVX512_CORE"),
    Processor("AVX-VNNI", False, MIDDLE, True, ("avx_vnni",), "AVX2_VNNI"),
    Processor("AVX2", False, MIDDLE_OF_SEVEN, True, ("avx2",), "AVX2"),
    Processor("ARM with bfloat16", True, 0, False, ("bf16",)),
    Processor("ARM", False, 0, False, ("neon",)),
    PLAIN,
)


def kind_of(capabilities: Mapping[str, Any], cap: str = "") -> Processor:
    """The first of KINDS whose instructions are there, and allowed by `cap` (one of CAPS; others allow all)."""
    allowed = CAPS[: CAPS.index(cap.upper()) + 1] if cap.upper() in CAPS else CAPS
    return next(
        kind for kind in KINDS if all(capabilities.get(need) for need in kind.needs) and kind.cap in ("", *allowed)
    )
