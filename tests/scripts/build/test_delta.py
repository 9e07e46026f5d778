from __future__ import annotations

from pathlib import Path

import pytest
import torch

from marctl.build.delta import apply_delta, pack_delta, read_delta, write_delta
from marctl.core.errors import UserError


def weights(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"matrix": (8, 16), "vector": (5,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def test_delta_restores_vectors_exactly_and_matrices_within_half_a_step(tmp_path: Path) -> None:
    base, tuned = weights(0), weights(1)
    write_delta(tmp_path / "delta.safetensors", pack_delta(base, tuned))
    restored = {name: value.clone() for name, value in base.items()}
    apply_delta(restored, read_delta(tmp_path / "delta.safetensors"))
    torch.testing.assert_close(restored["vector"], tuned["vector"])
    half_a_step = (tuned["matrix"] - base["matrix"]).abs().amax(1, keepdim=True) / 254
    assert ((restored["matrix"] - tuned["matrix"]).abs() <= half_a_step * 1.001).all()


def test_delta_for_another_model_is_refused() -> None:
    delta = pack_delta(weights(0), weights(1))
    with pytest.raises(UserError, match=r"changes matrix of shape \(8, 16\), the base has none"):
        apply_delta({"other": torch.zeros(2)}, delta)


def test_file_that_is_no_delta_is_refused(tmp_path: Path) -> None:
    (tmp_path / "delta.safetensors").write_bytes(b"junk")
    with pytest.raises(UserError, match="cannot read the delta"):
        read_delta(tmp_path / "delta.safetensors")
