"""How many actors a Ray has room for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from marctl.core.errors import UserError

LEAST_CORES = 0.01
"""Ray's smallest share."""


class NoRoom(UserError):
    """Ray has fewer GPUs than the actors need; it would wait for them for ever."""


@dataclass(frozen=True)
class Room:
    """`cores` and `gpus` of one actor."""

    actors: int
    cores: float
    gpus: float


def room_for(there: Mapping[str, float], threads: int, gpus: float = 0, wanted: int | None = None) -> Room:
    """`wanted` actors, or as many as the cores or GPUs hold.

    there: Ray's resources, `CPU` and `GPU`; threads and gpus: of one actor, 0 GPUs for one on cores. An actor
    reserves fewer cores than it has threads where there are more actors than cores. Raises NoRoom.
    """
    cores, cards = there.get("CPU", 1.0), there.get("GPU", 0.0)
    held = int(cards / gpus + 1e-9) if gpus else max(1, int(cores // threads))
    if gpus and held < (wanted or 1):
        needed = f"{wanted} actors need" if (wanted or 1) > 1 else "an actor needs"
        cure = "leave --gpus out to predict on cores, or name a cluster that has GPUs: --address HOST:PORT"
        raise NoRoom(f"--gpus {gpus:g}: {needed} {gpus * (wanted or 1):g}, and Ray finds {cards:g}; {cure}")
    actors = wanted or held
    return Room(actors, min(float(threads), max(cores / actors, LEAST_CORES)), gpus)
