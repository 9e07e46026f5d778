"""How many actors fit."""

from __future__ import annotations

import pytest

from marctl.batch.room import NoRoom, Room, room_for


@pytest.mark.parametrize(
    ("there", "options", "room"),
    [
        ({"CPU": 8.0}, {}, Room(4, 2.0, 0)),
        ({"CPU": 1.0}, {}, Room(1, 1.0, 0)),
        ({"CPU": 2.0}, {"wanted": 4}, Room(4, 0.5, 0)),
        ({"CPU": 16.0, "GPU": 2.0}, {"gpus": 1}, Room(2, 2.0, 1)),
        ({"CPU": 16.0, "GPU": 2.0}, {"gpus": 0.1}, Room(20, 0.8, 0.1)),
        ({"CPU": 16.0, "GPU": 5.0}, {"gpus": 2}, Room(2, 2.0, 2)),
        ({"CPU": 16.0, "GPU": 2.0}, {"gpus": 0.5, "wanted": 3}, Room(3, 2.0, 0.5)),
    ],
)
def test_actors_fill_cores_or_gpus_unless_the_user_names_a_number(
    there: dict[str, float], options: dict[str, float], room: Room
) -> None:
    assert room_for(there, 2, **options) == room  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("cards", "gpus", "wanted", "words"),
    [
        (0, 1, None, "an actor needs 1, and Ray finds 0"),
        (0, 0.5, 4, "4 actors need 2, and Ray finds 0"),
        (2, 1, 3, "3 actors need 3, and Ray finds 2"),
        (1, 2, None, "Ray finds 1"),
    ],
)
def test_more_gpus_than_there_are_is_refused_rather_than_waited_for(
    cards: float, gpus: float, wanted: int | None, words: str
) -> None:
    with pytest.raises(NoRoom, match=words):
        room_for({"CPU": 8.0, "GPU": cards}, 1, gpus, wanted)
