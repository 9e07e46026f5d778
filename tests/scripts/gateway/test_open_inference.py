"""The protocol's routes name models, not the workers that explain them."""

from __future__ import annotations

import json

from scripts.core.explainers import explainer_of
from scripts.gateway.open_inference import inner_routes, routes
from scripts.gateway.openapi import document
from scripts.gateway.policies import Traffic

SERVED = {"mcqa": {"1.0", "2.0"}, explainer_of("mcqa"): {"1.0"}}
DOCUMENTS = {"mcqa": Traffic(split={"1.0": 80, "2.0": 20})}


def test_explaining_workers_have_no_paths_of_their_own() -> None:
    for found in (routes(SERVED, DOCUMENTS), inner_routes(SERVED, DOCUMENTS), document(SERVED)):
        assert "mcqa" in json.dumps(found)
        assert explainer_of("mcqa") not in json.dumps(found)


def test_a_server_without_models_says_that_there_are_none() -> None:
    assert "served: none" in json.dumps(routes({}, {}))


def test_every_reference_of_the_schema_leads_somewhere() -> None:
    whole = document(SERVED)
    text = json.dumps(whole)
    for part in text.split('"$ref": "#/components/')[1:]:
        kind, _, name = part.partition('"')[0].partition("/")
        assert name in whole["components"][kind], name
