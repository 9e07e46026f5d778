"""A batchable method takes and gives lists, so that a client sends a list of one."""

import bentoml
from model import BATCH_SIZE, Model


# Its batching aims at a latency in place of a fixed delay, and refuses what it expects to miss it: that must not
# happen under a load that queues.
@bentoml.service(workers=1, traffic={"timeout": 60, "max_concurrency": 256}, logging={"access": {"enabled": False}})
class MultipleChoice:
    def __init__(self) -> None:
        self.model = Model()

    @bentoml.api(batchable=True, max_batch_size=BATCH_SIZE, max_latency_ms=60_000)
    def predict(self, questions: list[dict]) -> list[dict]:
        return self.model.answers(questions)
