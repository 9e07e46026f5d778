import signal
import sys

import ray
from model import BATCH_DELAY_S, BATCH_SIZE, PORT, Model
from ray import serve
from starlette.requests import Request


@serve.deployment(num_replicas=1, max_ongoing_requests=256, ray_actor_options={"num_cpus": 1})
class MultipleChoice:
    def __init__(self) -> None:
        self.model = Model()

    @serve.batch(max_batch_size=BATCH_SIZE, batch_wait_timeout_s=BATCH_DELAY_S)
    async def answers(self, questions: list[dict]) -> list[dict]:
        return self.model.answers(questions)

    async def __call__(self, request: Request) -> dict:
        return await self.answers(await request.json())


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, _temp_dir=sys.argv[1])
    serve.start(http_options={"host": "127.0.0.1", "port": PORT}, logging_config={"enable_access_log": False})
    serve.run(MultipleChoice.bind(), name="mcqa", route_prefix="/predict")
    signal.pause()
