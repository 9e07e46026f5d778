"""A specification whose features stand in a store, for tests."""

from __future__ import annotations

from typing import Any

from marctl_handlers.features import Specification, specification_of

CUSTOMER = {"name": "customer", "key": "customer:{customer}"}
SHOP = {"name": "shop", "key": "shop:{shop}", "type": "text"}
FRESHNESS_S = 3600


def specification(**income: Any) -> Specification:
    """Two entities; `income` changes the first feature."""
    return specification_of(
        [
            {
                "name": "income",
                "type": "number",
                "range": [0, 1_000_000],
                "default": 1000.0,
                "entity": CUSTOMER,
                "freshness_s": FRESHNESS_S,
                **income,
            },
            {
                "name": "home",
                "type": "category",
                "categories": ["owner", "rent"],
                "default": "rent",
                "transform": "one_hot",
                "entity": CUSTOMER,
            },
            {"name": "children", "type": "integer", "default": 0, "entity": CUSTOMER},
            {"name": "open", "type": "boolean", "default": False, "entity": SHOP},
            {"name": "amount", "type": "number", "missing": "refuse"},
        ]
    )
