"""Several versions that answer together: averaged, by vote, or stacked.

The members are loaded into one worker, and are asked one after the other, with features that are computed once for all
members that share them. One that cannot be loaded, fails on a question or is out of time leaves the others to answer;
the answer names who took part.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, MutableMapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

from marctl_handlers.core.composite import Composite
from marctl_handlers.core.errors import HandlerError, LoadError, ModelFault, TooLarge
from marctl_handlers.core.forms import Form
from marctl_handlers.core.messages import Stamp
from marctl_handlers.core.samples import read_json
from marctl_handlers.core.settings import Settings
from marctl_handlers.core.task import Task
from marctl_handlers.tasks.ensemble.combine import RULES, calibrated
from marctl_handlers.tasks.ensemble.explainer import explainer_of
from marctl_handlers.tasks.ensemble.member import LoadedMember, ask_all, is_outcome
from marctl_handlers.tasks.ensemble.schema import EnsembleSettings, answer_of, combined_of, short_names

if TYPE_CHECKING:
    from marctl_handlers.features.specification import Specification

log = logging.getLogger(__name__)
STACK_FILE = "stack.json"
"""A stack's weights by version, as `learn` writes them."""
OWN_FIELDS = ("members", "failed")


class Ensemble(Composite):
    """What differs from a member: `of` puts it before the members' task, whose types and class methods it keeps."""

    settings: EnsembleSettings
    settings_type: ClassVar[type[Settings]] = EnsembleSettings
    files: ClassVar[tuple[str, ...]] = (STACK_FILE,)
    default_sample: ClassVar[Mapping[str, Any] | None] = None
    members: list[LoadedMember]
    missing: dict[str, str]
    """Members that could not be loaded, by name, and why."""

    @classmethod
    def of(cls, members: Sequence[type[Task[Any, Any]]]) -> type[Ensemble]:
        first = members[0]
        for task in members:
            if (task.question_type, task.outcome_type) != (first.question_type, first.outcome_type):
                raise LoadError(
                    f"members: {told(task)} and {told(first)} cannot answer together; expected versions of one task"
                )
        if first.with_probabilities.__func__ is Task.with_probabilities.__func__:  # type: ignore[attr-defined]
            raise LoadError(f"members: answers of {first.__name__} have no probabilities that could be combined")
        return made_of(cls, tuple(members))

    def join(self, members: Mapping[str, Task[Any, Any] | LoadError]) -> None:
        names = short_names([member.version for member in self.settings.members])
        self.members, self.missing = [], {}
        for member, name in zip(self.settings.members, names, strict=True):
            found = members[member.version]
            if isinstance(found, LoadError):
                self.missing[name] = str(found)
                log.error("member %s could not be loaded; the others answer without it: %s", member.version, found)
            else:
                self.members.append(LoadedMember(member.version, name, member.weight or 1.0, found))
        if not self.members:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in self.missing.items())
            raise LoadError(f"none of its members could be loaded: {reasons}")
        self._refuse_other_classes()
        self._face = self.members[0].task
        self._rule = RULES[self.settings.combine]
        self.outputs = self._face.outputs
        self.settings = limited(self.settings, [member.task.settings for member in self.members])

    def _refuse_other_classes(self) -> None:
        first, *others = self.members
        for member in others:
            if member.task.classes != first.task.classes:
                raise LoadError(
                    f"members: {member.version} tells {member.task.classes} apart, {first.version} "
                    f"{first.task.classes}; expected the same classes in the same order"
                )

    def load(self, folder: Path) -> None:
        """The learned weights of a stack."""
        if self.settings.combine != "stack":
            return
        if any(member.weight is not None for member in self.settings.members):
            raise LoadError("members: the weights of a stack are learned; remove `weight`, or `combine: stack`")
        weights = read_json(folder / STACK_FILE, dict[str, float], {})
        for member in self.members:
            if member.version not in weights:
                raise LoadError(f"{STACK_FILE} has no weight for {member.version}; learn them with `marctl train`")
            member.weight = weights[member.version]

    # --- predict

    def predict(self, questions: Sequence[Any], deadline: float) -> list[Any]:
        """Each question's outcome, by the members that gave one."""
        shared: MutableMapping[str, Any] = {}
        rows = ask_all(
            self.members, lambda member, until: member.predict(questions, shared, until), len(questions), deadline
        )
        return [self._combined(column) for column in zip(*rows, strict=True)]

    def _combined(self, found: Sequence[Any]) -> Any:
        """The members' outcomes of one question as one, or why there is none."""
        able = [(member, one) for member, one in zip(self.members, found, strict=True) if is_outcome(one)]
        if not able:
            return failure(found)
        outcomes = [outcome for _, outcome in able]
        rows = [self._face.probabilities(outcome) for outcome in outcomes]
        probabilities = self._rule(rows, self.weights([member for member, _ in able]))
        outcome = self._face.with_probabilities(outcomes, calibrated(probabilities, self.calibration))
        return self.outcome_type(outcome, *self.present([member for member, _ in able]))

    def weights(self, members: Sequence[LoadedMember]) -> list[float]:
        """Of these members, adding up to 1, or in a stack to what all of them add up to."""
        total = sum(member.weight for member in self.members) if self.settings.combine == "stack" else 1.0
        given = sum(member.weight for member in members)
        return [member.weight * total / given for member in members]

    def present(self, members: Sequence[LoadedMember]) -> tuple[list[str], list[str]]:
        """Names of these members, and of all others."""
        names = [member.name for member in members]
        others = [member.name for member in self.members if member not in members]
        return names, others + list(self.missing)

    # --- what a member's task would do with its own outcome

    def check(self, question: Any) -> None:
        for member in self.members:
            member.task.check(question)

    def complete(self, questions: Sequence[Any]) -> Sequence[Any]:
        """Once for all members."""
        self._face.store = self.store
        return self._face.complete(questions)

    @property
    def stored_features(self) -> Specification | None:
        return self._face.stored_features

    def cost(self, questions: Sequence[Any]) -> int:
        """All members' costs. Raises TooLarge beyond the limit of any."""
        costs = []
        for member in self.members:
            cost, limit = member.task.cost(questions), member.task.settings.max_cost
            if limit is not None and cost > limit:
                raise TooLarge.beyond(limit, cost, self.cost_unit)
            costs.append(cost)
        return sum(costs)

    def answer(self, question: Any, outcome: Any, stamp: Stamp) -> msgspec.Struct:
        plain = self._face.answer(question, outcome.outcome, stamp)
        fields = {name: getattr(plain, name) for name in plain.__struct_fields__}
        return self.answer_type(**fields, members=outcome.members, failed=outcome.failed)

    def log_values(self, question: Any, outcome: Any) -> Mapping[str, Any]:
        return self._face.log_values(question, outcome.outcome)

    def probabilities(self, found: Any) -> Sequence[float]:
        combined = isinstance(found, self.outcome_type)
        return self._face.probabilities(found.outcome if combined else found)

    def label_index(self, question: Any, label: Any) -> int:
        return self._face.label_index(question, label)

    def fits(self, question: Any, outcome: Any) -> bool:
        return self._face.fits(question, outcome.outcome)

    def lasts(self, outcome: Any) -> bool:
        """What is missing today may be back tomorrow."""
        return not outcome.failed

    def form(self) -> Form | None:
        return self._face.form()

    @property
    def classes(self) -> Sequence[str] | None:
        return self._face.classes

    @property
    def features_key(self) -> str | None:
        return None

    @property
    def runtime(self) -> str:
        return "; ".join(f"{member.version}: {member.task.runtime}" for member in self.members)

    def warm_up(self) -> None:
        """Nothing: every member was warmed up by itself."""

    def totals(self) -> Mapping[str, int]:
        return {
            "handler_member_failures_total": sum(member.failures for member in self.members),
            "handler_members_missing": len(self.missing),
        }

    def explainer(self) -> Task[Any, Any] | None:
        return explainer_of(self)

    # --- for the build and for people

    @classmethod
    def explain_types(cls) -> tuple[type[msgspec.Struct], type[msgspec.Struct]] | None:
        types = super().explain_types()
        return None if types is None else (types[0], answer_of(types[1]))

    @classmethod
    def reference(cls, folder: Path, requests: Sequence[Mapping[str, Any]], settings: Settings) -> list[dict[str, Any]]:
        """No member may fail when an archive is built; each was compared with its own library before."""
        return [{"failed": []} for _ in requests]

    @classmethod
    def learn(
        cls, settings: EnsembleSettings, members: Sequence[Sequence[Sequence[float]]], labels: Sequence[int]
    ) -> Mapping[str, Any]:
        from marctl_handlers.tasks.ensemble.learn import stack_weights

        if settings.combine != "stack":
            raise ValueError(f"`combine: {settings.combine}` leaves nothing to learn; only a stack learns its weights")
        weights = stack_weights(members, labels)
        return {STACK_FILE: {member.version: w for member, w in zip(settings.members, weights, strict=True)}}

    @classmethod
    def differences(cls, expected: Mapping[str, Any], answer: Mapping[str, Any], tolerance: float) -> list[str]:
        """While a member is away, the others may answer differently."""
        found = [
            f"{name} is {answer.get(name)}, expected {expected[name]}"
            for name in OWN_FIELDS
            if name in expected and answer.get(name) != expected[name]
        ]
        rest = {name: value for name, value in expected.items() if name not in OWN_FIELDS}
        if not rest or answer.get("failed"):
            return found
        return found + super().differences(rest, answer, tolerance)

    @classmethod
    def show(cls, request: Mapping[str, Any], answer: Mapping[str, Any]) -> str:
        without = f"\n  without {', '.join(answer['failed'])}, which failed" if answer.get("failed") else ""
        return super().show(request, answer) + without


@cache
def made_of(cls: type[Ensemble], members: tuple[type[Task[Any, Any]], ...]) -> type[Ensemble]:
    """The ensemble's class before that of its first member, so that what the ensemble leaves open is the member's."""
    first = members[0]
    own: dict[str, Any] = {
        "question_type": first.question_type,
        "outcome_type": combined_of(first.outcome_type),
        "answer_type": answer_of(first.answer_type),
        "log_columns": first.log_columns,
        "label_type": first.label_type,
        "outputs": first.outputs,
        "libraries": tuple(sorted({name for task in members for name in task.libraries})),
        "explain_libraries": tuple(sorted({name for task in members for name in task.explain_libraries})),
        "__module__": cls.__module__,
    }
    return type(f"{cls.__name__}Of{first.__name__}", (cls, first), own)


def limited(settings: EnsembleSettings, members: Sequence[Settings]) -> EnsembleSettings:
    """No more instances than the strictest member takes, and no more cost than all take together."""
    limits = [member.max_cost for member in members if member.max_cost is not None]
    cost = settings.max_request_cost or (sum(limits) if limits else None)
    instances = min(settings.max_instances, *(member.max_instances for member in members))
    return msgspec.structs.replace(settings, max_request_cost=cost, max_instances=instances)


def failure(found: Sequence[Any]) -> HandlerError | None:
    """Of a question that no member answered: None if time was over for one of them, for it may answer the next time."""
    if None in found:
        return None
    told = [err for err in found if isinstance(err, HandlerError)]
    return told[0] if told else ModelFault("every member of the ensemble failed on this request")


def told(task: type[Task[Any, Any]]) -> str:
    return f"{task.__name__} ({task.question_type.__name__} to {task.outcome_type.__name__})"
