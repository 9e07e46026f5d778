"""The order within a batch, by a clock that the test turns."""

from __future__ import annotations

from marctl_handlers.shared.turns import Waiting, in_turns


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def played(
    requests: dict[str, int], cost_s: dict[str, float], turn_s: float = 0.02, batch_s: float = 0.25, known: bool = True
) -> tuple[list[tuple[str, int]], dict[str, int], float]:
    """The turns, what was left of each, and how long it took."""
    clock, turns = Clock(), []
    waiting: list[Waiting[str, int]] = []
    for name, count in requests.items():
        waiting.append(Waiting(name, request_s=cost_s[name] if known else 0.0))
        waiting[-1].places.extend(range(count))

    def compute(name: str, places: list[int]) -> None:
        turns.append((name, len(places)))
        clock.now += cost_s[name] * len(places)

    in_turns(waiting, compute, turn_s, batch_s, clock)
    return turns, {each.owner: len(each.places) for each in waiting}, clock.now


def test_a_version_alone_is_computed_at_once() -> None:
    assert played({"a": 100}, {"a": 0.001})[0] == [("a", 100)]


def test_everybody_has_a_turn_before_anybody_s_second_one_the_fewest_first() -> None:
    turns, left, _ = played({"burst": 60, "b": 1, "c": 2}, {"burst": 0.005, "b": 0.005, "c": 0.005})
    assert [name for name, _ in turns[:3]] == ["b", "c", "burst"]
    assert sum(count for name, count in turns if name == "burst") + left["burst"] == 60
    assert left["b"] == left["c"] == 0
    turns, _, _ = played({"burst": 60, "other": 70}, {"burst": 0.005, "other": 0.005})
    assert turns[:3] == [("burst", 4), ("other", 4), ("burst", 4)]


def test_a_burst_gets_no_more_than_the_batch_s_time() -> None:
    turns, left, took_s = played({"burst": 1000, "b": 1}, {"burst": 0.01, "b": 0.01})
    assert 0.25 <= took_s <= 0.3
    assert left == {"burst": 1000 - sum(n for name, n in turns if name == "burst"), "b": 0}


def test_a_costly_request_is_computed_all_the_same_and_after_the_others() -> None:
    turns, left, _ = played({"costly": 3, "b": 5}, {"costly": 2.0, "b": 0.001}, known=False)
    assert turns == [("costly", 3), ("b", 5)]
    turns, left, _ = played({"costly": 3, "b": 5}, {"costly": 2.0, "b": 0.001})
    assert turns == [("costly", 1), ("b", 5)]
    assert left == {"costly": 2, "b": 0}


def test_two_bursts_share_the_time() -> None:
    turns, _, _ = played({"a": 500, "b": 500}, {"a": 0.001, "b": 0.002})
    seconds = {name: sum(n for who, n in turns if who == name) * cost for name, cost in (("a", 0.001), ("b", 0.002))}
    assert abs(seconds["a"] - seconds["b"]) <= 0.021
