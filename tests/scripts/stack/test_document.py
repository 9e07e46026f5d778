from __future__ import annotations

from typing import Literal

import msgspec
import pytest

from marctl.gateway.policies import Traffic
from marctl.stack.document import Document, DocumentInvalid, Model, Pool, Version, dump, faults, parse

DIGEST = "sha256:" + "ab" * 32


def version(workers: int | Literal["shared"] = 1, explainers: int | None = None) -> Version:
    return Version(archive=DIGEST, file="mcqa-1.0.mar", workers=workers, explainers=explainers)


def document(**versions: Version) -> Document:
    named = {name.removeprefix("v").replace("_", "."): content for name, content in versions.items()}
    return Document({"mcqa": Model(default=next(iter(named)), versions=named)})


def with_traffic(traffic: Traffic, **versions: Version) -> Document:
    made = document(**(versions or {"v1_0": version(), "v2_0": version()}))
    return Document({"mcqa": Model(default="1.0", versions=made.models["mcqa"].versions, traffic=traffic)})


def test_what_is_printed_is_read_again() -> None:
    made = with_traffic(Traffic(split={"1.0": 80, "2.0": 20}, fallback=["1.0"]))
    read = parse(dump(made, 7), "x")
    assert (read.revision, Document(read.models)) == (7, made)
    assert "80" in dump(made, 7)


def test_shared_versions_and_their_workers_are_printed_and_read_again() -> None:
    made = msgspec.structs.replace(document(v1_0=version("shared")), shared=Pool(workers=2, memory_mb=512))
    text = dump(made, 7)
    assert parse(text, "x").document == made
    assert "workers: shared" in text
    assert "shared:\n  workers: 2" in text
    assert "shared" not in dump(document(v1_0=version()), 7)
    assert made.with_version("mcqa", "2.0", version()).shared == made.shared


def test_a_shared_version_may_be_the_default_and_have_traffic() -> None:
    assert faults(with_traffic(Traffic(split={"1.0": 100}), v1_0=version("shared"))) == []


@pytest.mark.parametrize("bad", ["{workers: 0}", "{memory_mb: 1}", "{turn_ms: 0}", "{colour: red}", "3"])
def test_settings_of_shared_workers_are_checked(bad: str) -> None:
    with pytest.raises(DocumentInvalid, match="shared"):
        parse(f"models: {{}}\nshared: {bad}", "x")


def test_versions_come_in_their_order() -> None:
    assert [name for _, name, _ in document(v1_10=version(), v1_9=version()).versions()] == ["1.9", "1.10"]


def test_all_faults_are_told_at_once() -> None:
    bad = "{archive: 'md5:1', file: ../x, workers: -1}"
    with pytest.raises(DocumentInvalid) as caught:
        parse(f"colour: red\nmodels: {{mcqa: {{default: '1.0', versions: {{'1.0': {bad}}}}}}}", "state.yaml")
    told = str(caught.value)
    assert told.startswith("state.yaml: 4 faults")
    for place in ("the document", "versions.1.0.archive", "versions.1.0.file", "versions.1.0.workers"):
        assert place in told


def test_a_version_that_yaml_reads_as_a_number_is_told() -> None:
    with pytest.raises(DocumentInvalid, match=r'write "1\.1" with quotes'):
        parse("models: {mcqa: {versions: {1.10: {}}}}", "x")


@pytest.mark.parametrize("bad", ["a\nb", "../evil", "", "a b", "x" * 101, "q-explain", "_shared-1", "-x", "a/b", "ä"])
def test_names_that_could_mean_something_else_are_refused(bad: str) -> None:
    assert faults(Document({bad: Model(default="1.0", versions={"1.0": version()})}))
    if not bad.endswith("-explain"):
        assert faults(Document({"mcqa": Model(default=bad, versions={bad: version()})}))


@pytest.mark.parametrize("file", ["../x.mar", "a/b.mar", "x\n.mar", "x.zip", ".mar"])
def test_an_archive_lies_in_the_store_and_nowhere_else(file: str) -> None:
    content = Version(archive=DIGEST, file=file, workers=1)
    assert faults(Document({"mcqa": Model(default="1.0", versions={"1.0": content})}))


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_weight_is_a_number(number: float) -> None:
    assert faults(with_traffic(Traffic(split={"1.0": number, "2.0": 1})))
    assert faults(with_traffic(Traffic(split={"1.0": 1}, shadow={"2.0": number})))
    whole = dump(with_traffic(Traffic(split={"1.0": 77})), 1)
    with pytest.raises(DocumentInvalid, match=r"mcqa\.traffic\.split\.1\.0: nan is no number"):
        parse(whole.replace(": 77", ": .nan"), "x")


def test_the_default_is_a_version_with_a_worker() -> None:
    assert "there are: 1.0" in faults(Document({"m": Model(default="2.0", versions={"1.0": version()})}))[0]
    assert "must keep a worker" in faults(document(v1_0=version(0)))[0]


@pytest.mark.parametrize(
    "traffic",
    [
        Traffic(split={"1.0": 1, "2.0": 1}),
        Traffic(split={"1.0": 1}, fallback=["2.0"]),
        Traffic(split={"1.0": 1}, shadow={"2.0": 1}),
    ],
)
def test_who_is_to_answer_has_a_worker(traffic: Traffic) -> None:
    [told] = faults(with_traffic(traffic, v1_0=version(), v2_0=version(0)))
    assert told.startswith("mcqa 2.0 has")
    assert "must keep a worker" in told


def test_a_version_of_weight_nothing_may_be_parked() -> None:
    assert not faults(with_traffic(Traffic(split={"1.0": 1, "2.0": 0}), v1_0=version(), v2_0=version(0)))


def test_a_yaml_bomb_is_refused_before_it_grows() -> None:
    levels = "".join(f"l{i + 1}: &l{i + 1} [{', '.join([f'*l{i}'] * 10)}]\n" for i in range(9))
    with pytest.raises(DocumentInvalid, match="more than 50 aliases"):
        parse("l0: &l0 [x]\n" + levels, "x")
    with pytest.raises(DocumentInvalid, match="nested more than"):
        parse("[" * 100_000, "x")


def test_a_model_goes_with_its_last_version() -> None:
    assert document(v1_0=version()).with_version("mcqa", "1.0", None) == Document()
