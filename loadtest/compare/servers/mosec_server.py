"""Its settings are command line options: see contenders.py."""

from model import BATCH_DELAY_S, BATCH_SIZE, Model
from mosec import Server, Worker


class MultipleChoice(Worker):
    def __init__(self) -> None:
        super().__init__()
        self.model = Model()

    def forward(self, data: list[dict]) -> list[dict]:
        return self.model.answers(data)


if __name__ == "__main__":
    server = Server()
    server.append_worker(MultipleChoice, num=1, max_batch_size=BATCH_SIZE, max_wait_time=round(BATCH_DELAY_S * 1000))
    server.run()
