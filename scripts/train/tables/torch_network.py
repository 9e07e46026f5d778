"""Several small networks by PyTorch, whose log-odds are averaged, in one TorchScript file."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from marctl.build.table_training import Network
from marctl.train.tables.fitted import Floats, Labels
from marctl_handlers.features import EncodedColumn
from marctl_handlers.features.encode import Encoded

OF_THIS_MACHINE = (".debug_pkl", "serialization_id")
"""Ends of names inside a TorchScript file: paths of source files, and what is computed from them; neither is needed."""
FARTHEST = 5.0
"""Inputs beyond count as this. Of a standardised feature these are standard deviations: a network goes on in a straight
line where it has seen no rows."""


class Mean(nn.Module):
    """The probability of the second label, shape (rows, 1)."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, encoded: Tensor) -> Tensor:
        inside = encoded.clamp(-FARTHEST, FARTHEST)
        log_odds = torch.stack([network(inside) for network in self.networks]).mean(0)
        return torch.sigmoid(log_odds)


class Networks:
    def __init__(self, mean: Mean, n_columns: int) -> None:
        self._mean, self._n_columns = mean.eval(), n_columns

    def probabilities(self, encoded: Encoded) -> Floats:
        with torch.inference_mode():
            found: Floats = self._mean(torch.from_numpy(encoded))[:, 0].double().numpy()
        return found

    def save(self, path: Path) -> None:
        # A process of its own: TorchScript numbers the classes of a process, and the file has their names.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            process.submit(write, self._mean, self._n_columns, path).result()


def write(mean: Mean, n_columns: int, path: Path) -> None:
    with warnings.catch_warnings(), torch.no_grad():
        # TorchScript is no longer developed; nothing else is loaded without unpickling.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.freeze(torch.jit.trace(mean, torch.zeros(2, n_columns))), str(path))
    with zipfile.ZipFile(path) as file:
        kept = {name: file.read(name) for name in file.namelist() if not name.endswith(OF_THIS_MACHINE)}
    with zipfile.ZipFile(path, "w") as file:
        for name, content in kept.items():
            file.writestr(zipfile.ZipInfo(name), content)


def fit(learner: Network, encoded: Encoded, labels: Labels, columns: Sequence[EncodedColumn], seed: int) -> Networks:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums of several threads come in any order
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            rows = torch.from_numpy(encoded).clamp(-FARTHEST, FARTHEST)
            wanted = torch.from_numpy(labels.astype(np.float32))
            networks = [trained(learner, rows, wanted) for _ in range(learner.networks)]
    finally:
        torch.set_num_threads(threads)
    return Networks(Mean(networks), len(columns))


def trained(learner: Network, rows: Tensor, labels: Tensor) -> nn.Module:
    """AdamW, the learning rate by one cycle (Smith and Topin 2018, arXiv:1708.07120)."""
    network = layers(learner, rows.shape[1])
    optimiser = torch.optim.AdamW(network.parameters(), lr=learner.learning_rate, weight_decay=learner.weight_decay)
    steps = learner.epochs * -(-len(rows) // learner.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, learner.learning_rate, total_steps=steps)
    for _ in range(learner.epochs):
        for batch in torch.randperm(len(rows)).split(learner.batch):
            optimiser.zero_grad()
            binary_cross_entropy_with_logits(network(rows[batch])[:, 0], labels[batch]).backward()
            optimiser.step()
            schedule.step()
    return network


def layers(learner: Network, n_columns: int) -> nn.Module:
    parts: list[nn.Module] = []
    for width in [n_columns, *[learner.width] * (learner.layers - 1)]:
        parts += [nn.Linear(width, learner.width), nn.SiLU(), nn.Dropout(learner.dropout)]
    return nn.Sequential(*parts, nn.Linear(learner.width, 1))
