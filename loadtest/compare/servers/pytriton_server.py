"""NVIDIA Triton with a Python function behind it. A question is one JSON text of a BYTES tensor (V2 protocol)."""

import json
import sys

import numpy as np
from model import BATCH_DELAY_S, BATCH_SIZE, PORT, Model
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

model = Model()


@batch
def answers(question: np.ndarray) -> dict[str, np.ndarray]:
    found = model.answers([json.loads(row[0]) for row in question])
    return {"answer": np.array([[json.dumps(answer).encode()] for answer in found], dtype=object)}


if __name__ == "__main__":
    grpc_port, metrics_port = map(int, sys.argv[1:])
    config = TritonConfig(
        http_address="127.0.0.1",
        http_port=PORT,
        grpc_address="127.0.0.1",
        grpc_port=grpc_port,
        metrics_port=metrics_port,
        log_verbose=0,
    )
    with Triton(config=config) as triton:
        triton.bind(
            model_name="mcqa",
            infer_func=answers,
            inputs=[Tensor(name="question", dtype=bytes, shape=(1,))],
            outputs=[Tensor(name="answer", dtype=bytes, shape=(1,))],
            config=ModelConfig(
                max_batch_size=BATCH_SIZE,
                batcher=DynamicBatcher(max_queue_delay_microseconds=round(BATCH_DELAY_S * 1e6)),
            ),
        )
        triton.serve()
