"""What commands declare where no stack runs; with a stack, see tests/live."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from marctl.cli import main
from marctl.core.errors import UserError
from marctl.gateway.policies import Traffic, TrafficInvalid
from marctl.stack import operations
from marctl.stack.document import Declared, Document
from marctl.stack.history import Conflict, NoSuchRevision, Revision
from marctl.stack.operations import NoSuchVersion, NotFollowed, NotReady, Operator
from marctl.stack.plan import TAKE_BACK
from marctl.stack.state import State
from tests.tiny_archives import FAILS_TO_LOAD, tiny_archive


@pytest.fixture
def operator(tmp_path: Path) -> Operator:
    """On a state that declares mcqa 1.0 and 2.0, the first one the default."""
    made = Operator(State(tmp_path / "state"), "a test", lambda _: None, actor="ann", reason="why not")
    for version in ("1.0", "2.0"):
        register(made, tiny_archive(tmp_path, version=version))
    return made


def register(operator: Operator, archive: Path, *, make_default: bool = False, force: bool = False) -> Document:
    store = operator.state.folder.parent / "store"
    change, _, _ = operations.register(operator, archive, store, workers=None, make_default=make_default, force=force)
    assert not change.followed
    return change.document


def now(operator: Operator) -> Document:
    return operator.state.history.current().document


def test_a_change_tells_who_and_why(operator: Operator) -> None:
    revision = operations.make_default(operator, "mcqa", "2.0").revision
    assert (revision.revision, revision.actor, revision.command, revision.reason) == (3, "ann", "a test", "why not")
    assert now(operator).models["mcqa"].default == "2.0"


def test_a_model_begins_with_its_first_version_as_default(operator: Operator, tmp_path: Path) -> None:
    document = register(operator, tiny_archive(tmp_path, "embed", "0.1"))
    assert (document.models["embed"].default, document.models["mcqa"].default) == ("0.1", "1.0")
    assert (tmp_path / "store" / "embed-0.1.mar").is_file()


def test_what_changes_nothing_makes_no_revision(operator: Operator) -> None:
    operations.make_default(operator, "mcqa", "1.0")
    assert operator.state.history.current().revision == 2


def test_a_version_is_declared_once(operator: Operator, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"mcqa 1\.0 is registered already, from mcqa-1\.0\.mar"):
        register(operator, tiny_archive(tmp_path, version="1.0"))


def test_a_refused_archive_leaves_the_store_as_it_was(operator: Operator, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="other content"):
        register(operator, tiny_archive(tmp_path, "other", "1.0").rename(tmp_path / "mcqa-2.0.mar"))
    assert now(operator).find("other", "1.0") is None


def test_a_file_with_an_odd_name_gets_the_names_of_its_model(operator: Operator, tmp_path: Path) -> None:
    odd = tiny_archive(tmp_path, "embed", "0.1").rename(tmp_path / "a b\n.mar")
    assert register(operator, odd).models["embed"].versions["0.1"].file == "embed-0.1.mar"


def test_versions_in_use_neither_go_nor_lose_their_workers(operator: Operator) -> None:
    operations.change_traffic(operator, "mcqa", {"split": {"1.0": 80, "2.0": 20}})
    with pytest.raises(NotReady, match=r"2\.0 has weight 20"):
        operations.unregister(operator, "mcqa", "2.0", force=False)
    with pytest.raises(NotReady, match="must keep a worker"):
        operations.scale(operator, "mcqa", "2.0", 0)
    with pytest.raises(NotReady, match="is the default version"):
        operations.unregister(operator, "mcqa", "1.0", force=True)
    document = operations.unregister(operator, "mcqa", "2.0", force=True).document
    assert document.models["mcqa"].policy == Traffic(split={"1.0": 80})


def test_a_parked_version_becomes_no_default_and_gets_no_traffic(operator: Operator) -> None:
    operations.scale(operator, "mcqa", "2.0", 0)
    with pytest.raises(NotReady, match=r"2\.0 has no worker; the default stays 1\.0"):
        operations.make_default(operator, "mcqa", "2.0")
    with pytest.raises(NotReady, match=r"marctl scale mcqa 2\.0 1"):
        operations.change_traffic(operator, "mcqa", {"split": {"2.0": 1}})


@pytest.mark.parametrize("model", ["mcqa-explain", "none"])
def test_traffic_is_of_models_that_are_declared(operator: Operator, model: str) -> None:
    with pytest.raises(NoSuchVersion, match="there are: mcqa"):
        operations.change_traffic(operator, model, {"split": {"1.0": 1}})


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), -1.0])
def test_a_weight_that_is_no_number_is_refused(operator: Operator, weight: float) -> None:
    with pytest.raises(TrafficInvalid, match=r"mcqa\.split\.2\.0"):
        operations.change_traffic(operator, "mcqa", {"split": {"1.0": 1, "2.0": weight}})


def test_who_applies_an_old_revision_is_told(operator: Operator) -> None:
    operations.make_default(operator, "mcqa", "2.0")
    with pytest.raises(Conflict, match="since revision 2: revision 3 by ann"):
        operations.apply(operator, Declared(2, operator.state.history.find(2).document.models))


def test_a_rollback_undoes_the_last_change_or_goes_to_a_revision(operator: Operator) -> None:
    operations.make_default(operator, "mcqa", "2.0")
    assert operations.rollback(operator, None).document == operator.state.history.find(2).document
    assert operations.rollback(operator, 3).document.models["mcqa"].default == "2.0"
    with pytest.raises(NoSuchRevision):
        operations.rollback(operator, 77)
    assert operator.state.history.verify() == []


def test_what_a_killed_reconciler_did_not_tell_the_history_does(operator: Operator) -> None:
    history = operator.state.history
    revision = operations.make_default(operator, "mcqa", "2.0").revision
    assert operations.answer_to(operator.state, revision, None).outcome == "in force"
    history.commit(history.find(2).document, expected=3, actor="r", command=TAKE_BACK, reason="labels.json")
    answer = operations.answer_to(operator.state, revision, None)
    assert (answer.outcome, answer.reason) == ("taken back", "labels.json")


def test_an_archive_that_is_declared_stays_in_the_store_when_nobody_answers(
    operator: Operator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next reconciler would have nothing to load."""

    def killed(self: Operator, revision: Revision) -> bool:
        raise NotFollowed(str(revision))

    monkeypatch.setattr(Operator, "_follow", killed)
    with pytest.raises(NotFollowed):
        register(operator, tiny_archive(tmp_path, version="3.0"))
    assert now(operator).find("mcqa", "3.0") is not None
    assert (tmp_path / "store" / "mcqa-3.0.mar").is_file()


def test_replacing_another_file_needs_force(operator: Operator, tmp_path: Path) -> None:
    operations.unregister(operator, "mcqa", "2.0", force=False)
    changed = tiny_archive(tmp_path / "new", version="2.0", handler=FAILS_TO_LOAD)
    with pytest.raises(UserError, match="--force"):
        register(operator, changed)
    assert register(operator, changed, force=True).find("mcqa", "2.0") is not None


def declared_traffic(operator: Operator, **policy: object) -> None:
    operations.set_traffic(operator, {"mcqa": msgspec.convert(policy, Traffic)})


@pytest.mark.parametrize(
    ("policy", "commands"),
    [
        ({"split": {"1.0": 100}, "shadow": {"2.0": 10}}, ["marctl route shadow mcqa --off"]),
        ({"split": {"1.0": 80, "2.0": 20}}, ["marctl route split mcqa 1.0=80"]),
        ({"split": {"1.0": 1}, "fallback": ["2.0", "stale"]}, ["marctl route fallback mcqa stale"]),
        (
            {"split": {"1.0": 1, "2.0": 1}, "shadow": {"2.0": 5}, "fallback": ["2.0"]},
            ["marctl route split mcqa 1.0=1", "marctl route shadow mcqa --off", "marctl route fallback mcqa --off"],
        ),
    ],
)
@pytest.mark.parametrize("park", [False, True])
def test_a_version_in_use_is_refused_with_the_commands_that_take_it_out_and_they_do(
    operator: Operator, policy: dict[str, object], commands: list[str], park: bool
) -> None:
    def take_away() -> None:
        if park:
            operations.scale(operator, "mcqa", "2.0", 0)
        else:
            operations.unregister(operator, "mcqa", "2.0", force=False)

    declared_traffic(operator, **policy)
    with pytest.raises(NotReady) as refused:
        take_away()
    told = re.findall(r"marctl route [^,;]+", str(refused.value))
    assert told == commands
    for command in told:
        done = CliRunner().invoke(main, [*command.split()[1:], "--state", str(operator.state.folder)])
        assert done.exit_code == 0, done.stderr
    take_away()


@pytest.mark.parametrize("fallback", [["2.0"], ["1.0", "2.0"]])
def test_a_version_that_answers_alone_is_no_fallback_of_itself(operator: Operator, fallback: list[str]) -> None:
    declared_traffic(operator, split={"2.0": 100})
    with pytest.raises(TrafficInvalid, match=r"mcqa 2\.0 cannot stand in for itself"):
        operations.change_traffic(operator, "mcqa", {"fallback": fallback})
    operations.change_traffic(operator, "mcqa", {"fallback": ["2.0", "1.0"]})
    operations.change_traffic(operator, "mcqa", {"fallback": ["1.0"]})
    operations.change_traffic(operator, "mcqa", {"split": {"1.0": 100}})  # an emergency is no time to refuse
    operations.change_traffic(operator, "mcqa", {"fallback": []})


def test_explainer_workers_that_no_recipe_asked_for_are_refused_with_the_way_to_them(operator: Operator) -> None:
    with pytest.raises(NoSuchVersion, match=r"Add `explanations: \{workers: 1\}` to its recipe, rebuild, register"):
        operations.scale(operator, "mcqa-explain", "1.0", 1)
