"""Its settings are two JSON files: see contenders.py. A question is one JSON text of a BYTES tensor (V2 protocol)."""

import json

from mlserver import MLModel
from mlserver.codecs import StringCodec
from mlserver.types import InferenceRequest, InferenceResponse
from model import Model


class MultipleChoice(MLModel):
    async def load(self) -> bool:
        self.model = Model()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        questions = [json.loads(text) for text in StringCodec.decode_input(payload.inputs[0])]
        answers = [json.dumps(answer) for answer in self.model.answers(questions)]
        return InferenceResponse(model_name=self.name, outputs=[StringCodec.encode_output("answer", answers)])
