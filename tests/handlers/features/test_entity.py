"""Ids come from clients, and become parts of Redis keys."""

from __future__ import annotations

from typing import Any

import pytest

from marctl_handlers.features import Entity, FeaturesInvalid, specification_of
from marctl_handlers.features.entity import request_faults

CUSTOMER = Entity("customer", "customer:{customer}")
SHOP = Entity("shop", "shop:{shop}:daily", "text")


def test_an_entity_has_the_key_that_other_writers_use() -> None:
    assert CUSTOMER.key_of(123) == "customer:123"
    assert SHOP.key_of("münchen-1") == "shop:münchen-1:daily"


@pytest.mark.parametrize(
    "entity_id",
    ["", "a b", "a\n", "a\r\nDEL x", "1:daily", "{1}", "a\x00", "\ud800", "a\u2028b", "x" * 201, 1, None, True, ["a"]],
)
def test_a_text_id_that_could_leave_its_place_is_refused(entity_id: Any) -> None:
    assert SHOP.id_fault(entity_id)


@pytest.mark.parametrize("entity_id", ["1", 1.0, True, None, 2**53 + 1, -(2**63), 10**400, {}, []])
def test_an_integer_id_is_an_integer(entity_id: Any) -> None:
    fault = CUSTOMER.id_fault(entity_id)
    assert fault is not None
    assert len(fault) < 100


def test_faults_of_a_request_name_the_entity() -> None:
    faults = request_faults({"customer": CUSTOMER, "shop": SHOP}, {"customer": "1", "shop": "a:b", "house": 3})
    assert [name for name, _ in faults] == ["customer", "shop", "house"]
    assert faults[0][1] == 'expected an integer, got "1"'
    assert faults[2][1] == "no such entity; there is customer, shop"
    assert request_faults({"customer": CUSTOMER, "shop": SHOP}, {"customer": 0, "shop": "a"}) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"entity": {"name": "customer", "key": "customer"}}, "expected {customer} once"),
        ({"entity": {"name": "customer", "key": "c:{customer}:{customer}"}}, "expected {customer} once"),
        ({"entity": {"name": "customer", "key": "c:{customer}:{0}"}}, "no other brace"),
        ({"entity": {"name": "customer", "key": "c \n:{customer}"}}, "no other brace or space"),
        ({"entity": {"name": "customer", "key": "{customer}"}}, "a word of its own"),
        ({"entity": {"name": "customer", "key": "marctl:cache:{customer}"}}, "a word of its own"),
        ({"entity": {"name": "customer", "key": "c:{customer}", "type": "float"}}, "'float'"),
        ({"entity": {"name": "customer", "key": "c:{customer}", "kind": 1}}, "unknown field `kind`"),
        ({"name": "@time", "entity": {"name": "customer", "key": "c:{customer}"}}, "how old a value is"),
        ({"freshness_s": 60}, "belongs to stored features"),
    ],
)
def test_a_specification_with_a_key_that_is_no_entity_s_own_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(FeaturesInvalid) as caught:
        specification_of([{"name": "income", "type": "number", **changes}])
    assert said in str(caught.value).replace("contains", "")


def test_an_entity_has_one_key() -> None:
    features = [
        {"name": name, "type": "number", "entity": {"name": "customer", "key": key}}
        for name, key in (("a", "c:{customer}"), ("b", "d:{customer}"))
    ]
    with pytest.raises(FeaturesInvalid, match=r"b\.entity: another feature gives customer another key or type"):
        specification_of(features)
