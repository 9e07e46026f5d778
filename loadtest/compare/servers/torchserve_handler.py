"""A text handler in the style of TorchServe's own transformers example: float32, every text padded to `max_length`,
tokenized one by one, the answer a dict that the server turns into JSON."""

import json

import torch
from transformers import AutoModelForMultipleChoice, AutoTokenizer
from ts.torch_handler.base_handler import BaseHandler

MAX_LENGTH = 150


class MultipleChoiceHandler(BaseHandler):
    def initialize(self, context):
        folder = context.system_properties["model_dir"]
        torch.set_num_threads(1)
        self.device = torch.device("cpu")
        self.tokenizer = AutoTokenizer.from_pretrained(folder, truncation_side="left")
        self.model = AutoModelForMultipleChoice.from_pretrained(folder).to(self.device).eval()
        self.initialized = True

    def preprocess(self, requests):
        questions, inputs = [], {}
        for request in requests:
            question = request.get("data") or request.get("body")
            if isinstance(question, (bytes, bytearray)):
                question = json.loads(question)
            questions.append(question)
            first = f"{question['context']} {question['question']}" if question.get("context") else question["question"]
            encoded = self.tokenizer(
                [first] * len(question["choices"]),
                question["choices"],
                padding="max_length",
                truncation="only_first",
                max_length=MAX_LENGTH,
                return_tensors="pt",
            )
            for name, tensor in encoded.items():
                inputs[name] = torch.cat((inputs[name], tensor)) if name in inputs else tensor
        return questions, inputs

    def inference(self, batch):
        questions, inputs = batch
        rows = {name: tensor.unsqueeze(1).to(self.device) for name, tensor in inputs.items()}
        return questions, self.model(**rows).logits.view(-1)

    def postprocess(self, outputs):
        questions, logits = outputs
        answers = []
        for question, scores in zip(questions, logits.split([len(q["choices"]) for q in questions]), strict=True):
            probabilities = torch.softmax(scores, -1)
            best = torch.argmax(probabilities).item()
            label = question["choices"][best]
            answers.append({"prediction": best, "label": label, "probabilities": probabilities.tolist()})
        return answers

    def handle(self, data, context):
        with torch.inference_mode():
            return self.postprocess(self.inference(self.preprocess(data)))
