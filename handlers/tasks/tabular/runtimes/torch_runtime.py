"""PyTorch models as TorchScript files, which hold the model's code and weights and are read without unpickling.

`torch.load` of a whole model runs whatever its file says, and `torch.export.load` unpickles parts of its file
(torch 2.13, torch/export/pt2_archive/_package.py), so that neither is used. An exported program also takes six times as
long for a small batch. TorchScript is deprecated, and not supported on Python 3.14: there, export to ONNX.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from marctl_handlers.core.errors import LoadError
from marctl_handlers.tasks.tabular.runtimes.runtime import Encoded, by_row


class TorchRuntime:
    """A scripted or traced module of one float32 tensor, shape (rows, columns)."""

    columns: int | None = None
    """A TorchScript file does not say."""

    def __init__(self, path: Path, threads: int, device: str = "cpu") -> None:
        """Raises LoadError."""
        import torch

        self.name = f"torch {torch.__version__.split('+')[0]}"
        torch.set_num_threads(threads)
        self._device = torch.device(device)
        try:
            with warnings.catch_warnings():
                # TorchScript is no longer developed; nothing else is read without unpickling.
                warnings.simplefilter("ignore", DeprecationWarning)
                self.module = torch.jit.load(str(path), map_location=self._device).eval()
        except (RuntimeError, ValueError) as err:
            raise LoadError(
                f"{path.name} is no TorchScript file; pickled models and torch.export's files are not read, because "
                "loading them can run any code. Save it with torch.jit.trace(model.eval(), example).save(...)"
            ) from err

    def scores(self, encoded: Encoded) -> NDArray[Any]:
        import torch

        with torch.inference_mode():
            given = torch.from_numpy(encoded)
            if self._device.type == "cuda":
                given = given.pin_memory().to(self._device, non_blocking=True)
            found = self.module(given)
        scores: NDArray[Any] = found.detach().cpu().numpy()
        return by_row(scores.astype(np.float64))
