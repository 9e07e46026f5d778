from __future__ import annotations

from itertools import product

from scripts.gateway.names import cluster, endpoints_file, guarded_cluster, shadow_cluster, stat_name

PARTS = ("1.0", "1_0", "1%2E0", "1|0", "1", "0", "a", "a|1.0", "a/b", "..", "1.0|shadow", "1.0|guarded", "é", "1 0")


def test_no_two_versions_share_a_name() -> None:
    """Whatever their names are: `1.0` and `1_0` shared a counter."""
    pairs = list(product(PARTS, PARTS))
    clusters = [make(*pair) for pair in pairs for make in (cluster, shadow_cluster, guarded_cluster)]
    assert len(set(clusters)) == 3 * len(pairs)
    assert len({stat_name(name) for name in clusters}) == len(clusters)
    assert len({endpoints_file(*pair) for pair in pairs}) == len(pairs)


def test_a_name_is_one_word_of_a_figure_and_one_file() -> None:
    for pair in product(PARTS, PARTS):
        assert "." not in stat_name(cluster(*pair))
        assert "/" not in endpoints_file(*pair)
