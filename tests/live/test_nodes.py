"""Two stacks follow one document, in a file or in Redis, and tell each other what they observe."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from marctl.build.reader import read_archive
from marctl.gateway.health import NOTHING_SERVED
from marctl.stack.store import digest_of
from tests.live.conftest import Site
from tests.live.envoys import until
from tests.redis_servers import TestRedis
from tests.tiny_archives import ANSWER, FAILS_TO_LOAD, tiny_archive

pytestmark = pytest.mark.live
PATIENCE_S = 40
FILE, REDIS = "a file", "Redis"
on_a_file = pytest.mark.parametrize("pair", [FILE], indirect=True)
"""For what a node does in the same way wherever its document stands."""


@dataclass
class Pair:
    """Two nodes and the place that they follow."""

    place: str
    first: Site
    second: Site
    redis: TestRedis | None

    @property
    def nodes(self) -> list[Site]:
        return [self.first, self.second]

    def up(self, site: Site) -> Any:
        name = "first" if site is self.first else "second"
        return site.call(*site.up_arguments, "--follow", self.place, "--node", name, "--detach")

    def show(self) -> dict[str, Any]:
        shown: dict[str, Any] = self.first.call("state", "show", "--from", self.place)
        return shown

    def apply(self, document: dict[str, Any]) -> int:
        path = self.first.folder / "wanted.yaml"
        path.write_text(yaml.safe_dump(document))
        revision: int = self.first.call("state", "apply", str(path), "--to", self.place)["revision"]
        return revision

    def write(self, text: str) -> None:
        """Past `marctl`, as a mounted ConfigMap or another program does."""
        if self.redis is not None:
            self.redis.client.set("marctl:document:pair", text)
            return
        partial = Path(self.place).with_suffix(".partial")
        partial.write_text(text)
        partial.replace(self.place)

    def take_away(self) -> None:
        if self.redis is None:
            Path(self.place).rename(f"{self.place}.away")
        else:
            self.redis.client.rename("marctl:document:pair", "away")

    def bring_back(self) -> None:
        if self.redis is None:
            Path(f"{self.place}.away").rename(self.place)
        else:
            self.redis.client.rename("away", "marctl:document:pair")


def document_of(site: Site) -> dict[str, Any]:
    """mcqa 1.0 and 2.0, half of the requests each, with one worker each."""
    versions = {
        version: {
            "archive": digest_of(read_archive(site.store / f"mcqa-{version}.mar")),
            "file": f"mcqa-{version}.mar",
            "workers": 1,
        }
        for version in ("1.0", "2.0")
    }
    return {"models": {"mcqa": {"default": "1.0", "versions": versions}}}


@pytest.fixture(scope="module", params=[FILE, REDIS])
def pair(
    request: pytest.FixtureRequest,
    make_site: Callable[..., Site],
    redis_server: TestRedis,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Pair]:
    """Both nodes serve mcqa 1.0 and 2.0."""
    redis = redis_server if request.param == REDIS else None
    place = f"{redis.url}#pair" if redis else str(tmp_path_factory.mktemp("place") / "state.yaml")
    made = Pair(place, make_site("1.0", "2.0"), make_site("1.0", "2.0"), redis)
    made.apply(document_of(made.first))
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(made.up, made.nodes))
    yield made
    for site in made.nodes:
        site.call("down")
        assert not site.processes()
        assert not site.reconcilers()


def default_of(site: Site) -> str:
    """By the version that answers."""
    status = json.loads((site.state / "running.json").read_text())
    return site.client(status["gateway"]["address"]).headers.get("x-model-version", "none")


def in_force(site: Site, default: str) -> bool:
    return default_of(site) == default


def change_default(pair: Pair, version: str) -> int:
    document = pair.show()
    document["models"]["mcqa"]["default"] = version
    return pair.apply(document)


def other(version: str) -> str:
    return "2.0" if version == "1.0" else "1.0"


def conditions(site: Site) -> str:
    return " ".join(each["reason"] for each in site.call("status")["conditions"])


def test_one_change_of_the_place_comes_into_force_on_both_nodes(pair: Pair) -> None:
    took = []
    for _ in range(4):
        wanted = other(default_of(pair.first))
        text = pair.show()
        text["models"]["mcqa"]["default"] = wanted
        began = time.monotonic()
        pair.write(yaml.safe_dump(text))
        until(lambda wanted=wanted: all(in_force(site, wanted) for site in pair.nodes), PATIENCE_S)
        took.append(time.monotonic() - began)
    took.sort()
    print(f"change to effect on both nodes: {[round(s, 2) for s in took]}, median {statistics.median(took):.2f} s")
    for site in pair.nodes:
        *_, last = site.call("history")["revisions"]
        assert (last["actor"], last["command"]) == ("follow", f"follow {pair.place}")
        assert "sha256:" in last["reason"]


def test_every_node_shows_all_nodes(pair: Pair) -> None:
    def told() -> bool:
        rows = pair.first.call("status")["nodes"]
        return [(row["node"], row["in_force"], row["old"]) for row in rows] == [
            ("first", True, False),
            ("second", True, False),
        ]

    until(told, PATIENCE_S)
    rows = pair.second.call("status")["nodes"]
    assert len({row["digest"] for row in rows}) == 1
    shown = pair.second.run("status").stdout
    assert f"node second follows {pair.place}" in shown
    assert "second (here)" in shown


@on_a_file
def test_a_node_that_was_away_catches_up(pair: Pair) -> None:
    pair.second.call("down")
    wanted = other(default_of(pair.first))
    change_default(pair, wanted)
    until(lambda: in_force(pair.first, wanted), PATIENCE_S)
    pair.up(pair.second)
    until(lambda: in_force(pair.second, wanted), PATIENCE_S)
    assert pair.second.call("history", "verify")["verified"]


@on_a_file
def test_a_reconciler_that_was_killed_goes_on_following(pair: Pair) -> None:
    [process] = pair.second.reconcilers()
    process.kill()
    process.wait()
    wanted = other(default_of(pair.first))
    change_default(pair, wanted)
    pair.second.up()
    until(lambda: all(in_force(site, wanted) for site in pair.nodes), PATIENCE_S)


def test_an_invalid_document_changes_nothing_and_is_told_with_all_its_faults(pair: Pair) -> None:
    before = pair.show()
    revisions = [site.call("state", "show")["revision"] for site in pair.nodes]
    broken = pair.show()
    broken["models"]["mcqa"] |= {"default": "7.0", "traffic": {"split": {"8.0": 1}}}
    pair.write(yaml.safe_dump(broken))
    for site in pair.nodes:
        until(lambda site=site: "7.0 is no version" in conditions(site) and "8.0" in conditions(site), PATIENCE_S)
    assert [site.call("state", "show")["revision"] for site in pair.nodes] == revisions
    assert all(site.client(site.call("status")["gateway"]).json() == ANSWER for site in pair.nodes)
    pair.write(yaml.safe_dump(before))
    for site in pair.nodes:
        until(lambda site=site: conditions(site) == "", PATIENCE_S)


def test_a_place_that_is_away_is_a_condition_and_is_caught_up_with(pair: Pair) -> None:
    before = default_of(pair.first)
    pair.take_away()
    for site in pair.nodes:
        until(lambda site=site: "put the document there" in conditions(site), PATIENCE_S)
        assert default_of(site) == before
    pair.bring_back()
    wanted = other(before)
    change_default(pair, wanted)
    until(lambda: all(in_force(site, wanted) and not conditions(site) for site in pair.nodes), PATIENCE_S)


@on_a_file
def test_a_version_that_one_node_lacks_waits_there_for_its_archive(pair: Pair) -> None:
    before = pair.show()
    made = tiny_archive(pair.first.store, version="3.0")
    wanted = pair.show()
    content = {"archive": digest_of(read_archive(made)), "file": made.name, "workers": 1}
    wanted["models"]["mcqa"]["versions"]["3.0"] = content
    pair.apply(wanted)
    until(lambda: "mcqa 3.0" in pair.first.versions(), PATIENCE_S)
    until(lambda: "mcqa-3.0.mar is gone" in conditions(pair.second), PATIENCE_S)
    until(lambda: [row["in_force"] for row in pair.first.call("status")["nodes"]] == [True, False], PATIENCE_S)
    os.link(made, pair.second.store / made.name)
    until(lambda: "mcqa 3.0" in pair.second.versions() and not conditions(pair.second), PATIENCE_S)
    pair.apply(before | {"revision": pair.show()["revision"]})
    until(lambda: all("mcqa 3.0" not in site.versions() for site in pair.nodes), PATIENCE_S)


@on_a_file
def test_commands_that_change_the_state_are_refused_with_the_place_and_the_cure(pair: Pair, tmp_path: Path) -> None:
    before = pair.first.call("state", "show")
    path = tmp_path / "state.yaml"
    path.write_text(pair.first.run("state", "show").stdout)
    archive = tiny_archive(tmp_path, version="9.0")
    for words in (
        ["scale", "mcqa", "1.0", "2"],
        ["default", "mcqa", "2.0"],
        ["route", "split", "mcqa", "1.0=1"],
        ["register", str(archive)],
        ["unregister", "mcqa", "2.0"],
        ["rollback"],
        ["state", "apply", str(path)],
    ):
        done = pair.first.run(*words)
        assert (done.returncode, "Traceback" in done.stderr) == (1, False), (words, done.stderr)
        assert f"marctl state apply FILE --to {pair.place}" in done.stderr, (words, done.stderr)
    assert pair.first.call("state", "show") == before
    assert not (pair.first.store / archive.name).exists()


def test_an_outdated_document_is_not_written(pair: Pair, tmp_path: Path) -> None:
    outdated = pair.show()
    change_default(pair, other(default_of(pair.first)))
    path = tmp_path / "outdated.yaml"
    path.write_text(yaml.safe_dump(outdated))
    done = pair.first.run("state", "apply", str(path), "--to", pair.place)
    assert (done.returncode, "the document was made from revision" in done.stderr) == (1, True)


@on_a_file
def test_a_version_that_fails_is_taken_back_on_every_node_with_the_reason(pair: Pair) -> None:
    before, serving = pair.show(), default_of(pair.first)
    wanted = pair.show()
    for site in pair.nodes:
        made = tiny_archive(site.store, version="9.0", handler=FAILS_TO_LOAD)
        content = {"archive": digest_of(read_archive(made)), "file": made.name, "workers": 1}
    wanted["models"]["mcqa"] |= {"default": "9.0"}
    wanted["models"]["mcqa"]["versions"]["9.0"] = content
    pair.apply(wanted)
    for site in pair.nodes:
        until(lambda site=site: "this document was taken back: " in conditions(site), PATIENCE_S)
        assert "labels.json has 2 labels" in conditions(site)
        assert default_of(site) == serving
    pair.apply(before | {"revision": pair.show()["revision"]})
    for site in pair.nodes:
        until(lambda site=site: conditions(site) == "", PATIENCE_S)


def readiness(started: dict[str, Any]) -> tuple[int, str]:
    told = requests.get(f"{started['gateway']}/ready", timeout=10)
    return told.status_code, told.json().get("detail", "")


def test_a_first_document_that_fails_ends_nothing_and_the_next_one_is_served(
    make_site: Callable[..., Site], tmp_path: Path
) -> None:
    site = make_site("1.0", "2.0")
    place = tmp_path / "state.yaml"
    started = site.call(*site.up_arguments, "--follow", str(place), "--detach")
    assert started["versions"] == []
    until(lambda: readiness(started) == (503, NOTHING_SERVED), PATIENCE_S)
    good = document_of(site)
    made = tiny_archive(site.store, version="9.0", handler=FAILS_TO_LOAD)
    content = {"archive": digest_of(read_archive(made)), "file": made.name, "workers": 1}
    bad = {"models": {"mcqa": {"default": "9.0", "versions": {"9.0": content}}}}
    place.write_text(yaml.safe_dump(bad))
    until(lambda: "this document was taken back: " in conditions(site), PATIENCE_S)
    assert readiness(started) == (503, NOTHING_SERVED)
    place.write_text(yaml.safe_dump(good))
    until(lambda: in_force(site, "1.0"), PATIENCE_S)
    until(lambda: readiness(started)[0] == 200, PATIENCE_S)
    site.call("down")
    site.assert_nothing_left(started)
