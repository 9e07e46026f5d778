from __future__ import annotations

from itertools import product

from marctl.gateway.names import cluster, guarded_cluster, shadow_cluster

PARTS = ("1.0", "1_0", "1%2E0", "1|0", "1", "0", "a", "a|1.0", "a/b", "..", "1.0|shadow", "1.0|guarded", "é", "1 0")


def test_no_two_versions_share_a_name() -> None:
    """Whatever their names are: `1.0` and `1_0` shared a counter."""
    pairs = list(product(PARTS, PARTS))
    clusters = [make(*pair) for pair in pairs for make in (cluster, shadow_cluster, guarded_cluster)]
    assert len(set(clusters)) == 3 * len(pairs)
