"""The protocol's routes name models, not the workers that explain them."""

from __future__ import annotations

import json

from marctl.core.explainers import explainer_of
from marctl.gateway.openapi import document
from marctl.gateway.routes import gateway_routes
from tests.declared import declared_of

SERVED = {"mcqa": {"1.0", "2.0"}, explainer_of("mcqa"): {"1.0"}}
DECLARED = declared_of(mcqa="multiple_choice", embed="embedding")


def test_explaining_workers_have_no_paths_of_their_own() -> None:
    for found in (gateway_routes(SERVED), document(SERVED, DECLARED)):
        assert "mcqa" in json.dumps(found)
        assert explainer_of("mcqa") not in json.dumps(found)


def test_every_reference_of_the_schema_leads_somewhere() -> None:
    whole = document({**SERVED, "embed": {"1.0"}}, DECLARED)
    text = json.dumps(whole)
    for part in text.split('"$ref": "#/components/')[1:]:
        kind, _, name = part.partition('"')[0].partition("/")
        assert name in whole["components"][kind], name


def test_each_model_has_paths_and_types_of_its_own() -> None:
    paths = document({"mcqa": {"1.0"}, "embed": {"1.0"}, "theirs": {"1.0"}}, DECLARED)["paths"]
    bodies = {
        path: json.dumps(operation["post"]["requestBody"]) for path, operation in paths.items() if "post" in operation
    }
    assert "mcqa.Question" in bodies["/predictions/mcqa"]
    assert "embed.Asked" in bodies["/embed"]
    assert "mcqa.ExplainQuestion" in bodies["/v1/models/mcqa:explain"]
    assert "/explanations/embed" not in paths
    assert "embed." not in bodies["/predictions/mcqa/{version}"]
    assert "/predictions/theirs" in paths, "an archive that declares nothing takes anything"
