"""The model as one would write it in an afternoon, shared by all servers but ours.

One thread, all rows of a batch padded to its longest. The environment says where the `save_pretrained` folder is
(MODEL_FOLDER), in which numbers to compute (NUMBERS, a torch type) and which port to listen on (PORT).
"""

from __future__ import annotations

import os

import torch
from transformers import AutoModelForMultipleChoice, AutoTokenizer

PORT = int(os.environ.get("PORT", "0"))
MAX_TOKENS = 64
BATCH_SIZE = 32
BATCH_DELAY_S = 0.005


class Model:
    def __init__(self) -> None:
        torch.set_num_threads(1)
        dtype = getattr(torch, os.environ["NUMBERS"])
        folder = os.environ["MODEL_FOLDER"]
        # Where a text is too long, its beginning goes, as in our archives.
        self.tokenizer = AutoTokenizer.from_pretrained(folder, truncation_side="left")
        self.model = AutoModelForMultipleChoice.from_pretrained(folder, dtype=dtype).eval()
        self.answers([{"question": "Which?", "choices": ["this", "that"]}])

    @torch.inference_mode()
    def answers(self, questions: list[dict]) -> list[dict]:
        """One answer per question, in order."""
        pairs = [
            (f"{q['context']} {q['question']}" if q.get("context") else q["question"], choice)
            for q in questions
            for choice in q["choices"]
        ]
        inputs = self.tokenizer(
            [first for first, _ in pairs],
            [choice for _, choice in pairs],
            padding=True,
            truncation="only_first",
            max_length=MAX_TOKENS,
            return_tensors="pt",
        )
        logits = self.model(**{name: tensor.unsqueeze(1) for name, tensor in inputs.items()}).logits.float().view(-1)
        found = []
        for question, scores in zip(questions, logits.split([len(q["choices"]) for q in questions]), strict=True):
            probabilities = scores.softmax(-1).tolist()
            best = probabilities.index(max(probabilities))
            found.append({"prediction": best, "label": question["choices"][best], "probabilities": probabilities})
        return found
