"""Explains an ensemble's outcome as the weighted sum of its members' explanations of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

from marctl_handlers.core.forms import Form
from marctl_handlers.core.messages import Stamp
from marctl_handlers.core.task import Task
from marctl_handlers.tasks.ensemble.member import LoadedMember, ask_all, is_outcome

if TYPE_CHECKING:
    from marctl_handlers.tasks.ensemble.task import Ensemble


class Explained(msgspec.Struct, frozen=True):
    """An ensemble's outcome, and what each member that could explain it found."""

    combined: Any
    members: list[Any]
    found: list[Any]


class EnsembleExplainer(Task[msgspec.Struct, Explained]):
    """Its types are placeholders until `explainer_of` knows the members' explainers."""

    explains: ClassVar[bool] = True
    cached: ClassVar[bool] = False

    def __init__(self, ensemble: Ensemble, explainers: Mapping[LoadedMember, Task[Any, Any]]) -> None:
        self._ensemble = ensemble
        self._explainers = explainers
        self._face = next(iter(explainers.values()))
        most = min(explainer.settings.max_instances for explainer in explainers.values())
        super().__init__(msgspec.structs.replace(ensemble.settings, max_instances=most), ensemble.device)

    def load(self, folder: Path) -> None:
        """Nothing: the members are loaded."""

    def form(self) -> Form | None:
        return self._face.form()

    def check(self, question: Any) -> None:
        for explainer in self._explainers.values():
            explainer.check(question)

    def complete(self, questions: Sequence[Any]) -> Sequence[Any]:
        self._face.store = self.store
        return self._face.complete(questions)

    def cost(self, questions: Sequence[Any]) -> int:
        return self._ensemble.cost(questions)

    def predict(self, questions: Sequence[Any], deadline: float) -> list[Any]:
        """Answers first; then each member explains all of them."""
        outcomes = self._ensemble.predict(questions, deadline)
        answered = [i for i, outcome in enumerate(outcomes) if is_outcome(outcome)]
        found = iter(self._explain([questions[i] for i in answered], [outcomes[i] for i in answered], deadline))
        return [next(found) if is_outcome(outcome) else outcome for outcome in outcomes]

    def _explain(self, questions: Sequence[Any], combined: Sequence[Any], deadline: float) -> list[Any]:
        outcomes = [one.outcome for one in combined]

        def explained(member: LoadedMember, until: float) -> list[Any]:
            def ask(places: Sequence[int], until: float) -> Sequence[Any]:
                explainer = self._explainers[member]
                return explainer.explain([questions[i] for i in places], [outcomes[i] for i in places], until)

            return member.ask(ask, len(questions), until)

        members = list(self._explainers)
        rows = ask_all(members, explained, len(questions), deadline) if questions else []
        return [self._joined(one, members, found) for one, found in zip(combined, zip(*rows, strict=True), strict=True)]

    def _joined(self, combined: Any, members: Sequence[LoadedMember], found: Sequence[Any]) -> Any:
        """Who took part in the answer and could explain it; an error that all have in common is the client's."""
        able = [
            (member, one)
            for member, one in zip(members, found, strict=True)
            if is_outcome(one) and member.name in combined.members
        ]
        if not able:
            return next((one for one in found if isinstance(one, Exception)), None)
        return Explained(combined, [member for member, _ in able], [one for _, one in able])

    def answer(self, question: Any, outcome: Explained, stamp: Stamp) -> msgspec.Struct:
        members = outcome.members
        answers = [
            self._explainers[member].answer(question, found, stamp)
            for member, found in zip(members, outcome.found, strict=True)
        ]
        joined = self._face.add_up(answers, self._ensemble.weights(members))
        present, failed = self._ensemble.present(members)
        fields = msgspec.structs.asdict(answers[0]) | dict(joined)
        return self.answer_type(**fields, members=present, failed=failed)

    def log_values(self, question: Any, outcome: Explained) -> Mapping[str, Any]:
        return self._ensemble.log_values(question, outcome.combined)

    def warm_up(self) -> None:
        for explainer in self._explainers.values():
            explainer.warm_up()

    def totals(self) -> Mapping[str, float]:
        """As one version counts: every member explains the same answers, the first one all that it can."""
        return self._face.totals()


def explainer_of(ensemble: Ensemble) -> Task[Any, Any] | None:
    """The explainer round those of the members; None if a member explains nothing."""
    found = {member: member.task.explainer() for member in ensemble.members}
    explainers = {member: explainer for member, explainer in found.items() if explainer is not None}
    types = ensemble.explain_types()
    if len(explainers) < len(found) or types is None:
        return None
    first = type(next(iter(explainers.values())))
    own: dict[str, Any] = {
        "question_type": types[0],
        "outcome_type": Explained,
        "answer_type": types[1],
        "log_columns": ensemble.log_columns,
        "label_type": ensemble.label_type,
        "example": first.example,
        "cost_unit": first.cost_unit,
        "__module__": __name__,
    }
    kind: type[EnsembleExplainer] = type(f"Ensemble{first.__name__}", (EnsembleExplainer,), own)
    return kind(ensemble, explainers)
