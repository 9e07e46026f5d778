"""What a unit asks of a loaded archive: answers, explanations, and that what it asked is recorded."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from marctl.batch.archive import load
from marctl.batch.job import Job
from marctl.core.errors import UserError

ROLE = "batch"
"""How records of the prediction log are marked."""
LOG_TIMEOUT_S = 5.0
"""A full queue of records is waited for so long; then its oldest ones are lost, and counted."""
POLL_S = 0.01


class BadExplanation(UserError):
    """Options of an explanation that the version does not take."""


class Explained(Struct, frozen=True):
    """An answer with its explanation, which is JSON, or the error that came instead."""

    answer: Any
    explanations: Any


class Ask:
    """A job's version, loaded in this process."""

    def __init__(self, pipeline: Any, explainer: Any = None, options: Mapping[str, Any] | None = None) -> None:
        """`explainer`: the pipeline that answers explain requests, and `options` for them."""
        self._pipeline, self._explainer, self._options = pipeline, explainer, options
        self.question_type = pipeline.task.question_type
        self.stored_features = getattr(pipeline.task, "stored_features", None)
        """The specification of features that rows may leave to a store; None without any, and in an archive whose code
        is older."""
        self._logged = 0

    @classmethod
    def loaded(cls, root: Path, job: Job, device: str, redis: str | None) -> Ask:
        """From an extracted archive. Raises UserError."""
        pipeline = load(root, job.model, job.version, device, explains=False)
        explainer = None
        if job.explain is not None:
            explainer = load(root, job.model, job.version, device, explains=True).explainer
        if job.log:
            open_log(pipeline, root, redis)
        return cls(pipeline, explainer, job.explain)

    @property
    def broken(self) -> bool:
        """This process's device answers nothing any more."""
        return bool(self._pipeline.broken)

    def predict(self, questions: Sequence[Any], ids: Sequence[str]) -> list[Any]:
        """An answer or an error per question, in order; `ids` are those of their predictions."""
        answers: list[Any]
        if self._pipeline.log is None:  # an archive's code may be older than what records
            answers = self._pipeline.predict(questions)
        else:
            answers = self._pipeline.predict(questions, records=self._records(ids))
            self._wait_for_log(self._pipeline.log, len(questions))
        return answers if self._explainer is None else self._explained(questions, answers)

    # --- explanations

    def _explained(self, questions: Sequence[Any], answers: Sequence[Any]) -> list[Any]:
        good = [i for i, answer in enumerate(answers) if not isinstance(answer, Exception)]
        found = iter(self._explainer.predict([self._explain_request(questions[i]) for i in good]))
        return [
            answer if isinstance(answer, Exception) else Explained(answer, explanation_of(next(found)))
            for answer in answers
        ]

    def _explain_request(self, question: Any) -> Any:
        """Raises BadExplanation."""
        content = {**msgspec.structs.asdict(question), "explain": self._options}
        try:
            return msgspec.convert(content, self._explainer.task.question_type)
        except msgspec.ValidationError as err:
            raise BadExplanation(f"--explain: {err}") from err

    # --- the prediction log

    def _records(self, ids: Sequence[str]) -> list[Any]:
        from marctl_handlers.core.messages import ROLE_HEADER, Request

        return [Request(None, one, headers={ROLE_HEADER: ROLE}) for one in ids]

    def _wait_for_log(self, log: Any, count: int) -> None:
        """A job is faster than the log's thread, whose queue is bounded."""
        self._logged += count
        deadline = time.monotonic() + LOG_TIMEOUT_S
        while log.written + log.spilled + log.dropped < self._logged and time.monotonic() < deadline:
            time.sleep(POLL_S)


def open_log(pipeline: Any, root: Path, redis: str | None) -> None:
    """Raises UserError if the version keeps none."""
    from marctl_handlers.archive import archive_digest
    from marctl_handlers.redis import log

    os.environ["REDIS_URL"] = redis or ""
    pipeline.log = log.open_log(pipeline.task, pipeline.model, archive_digest(root))
    if pipeline.log is None:
        raise UserError(f"{pipeline.model} keeps no log: its recipe says so")


def explanation_of(answer: Any) -> Any:
    if isinstance(answer, Exception):
        return {"error": getattr(answer, "error", "failed"), "detail": str(answer)}
    return answer.explanations
