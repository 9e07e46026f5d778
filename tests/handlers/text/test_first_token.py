from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForMultipleChoice

from marctl_handlers.text.first_token import use_first_token_only


@pytest.mark.parametrize(
    ("kind", "known"), [("bert", True), ("roberta", True), ("deberta", False), ("distilbert", False)]
)
def test_logits_are_those_of_the_whole_last_layer(kind: str, known: bool, tiny_model: Callable[[str], Path]) -> None:
    whole = AutoModelForMultipleChoice.from_pretrained(tiny_model(kind)).eval()
    short = AutoModelForMultipleChoice.from_pretrained(tiny_model(kind)).eval()
    assert use_first_token_only(short) is known
    ids = torch.randint(5, 50, (3, 2, 17), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, 1, 9:] = 0
    for inputs in ({"input_ids": ids}, {"input_ids": ids, "attention_mask": mask}):
        with torch.inference_mode():
            torch.testing.assert_close(short(**inputs).logits, whole(**inputs).logits, atol=1e-5, rtol=0)


def test_gradients_are_those_of_the_whole_last_layer(tiny_model: Callable[[str], Path]) -> None:
    whole = AutoModelForMultipleChoice.from_pretrained(tiny_model("bert")).eval()
    short = AutoModelForMultipleChoice.from_pretrained(tiny_model("bert")).eval()
    use_first_token_only(short)
    ids = torch.randint(5, 50, (2, 2, 12), generator=torch.Generator().manual_seed(0))
    for model in (whole, short):
        model(input_ids=ids).logits.sum().backward()
    for (name, a), (_, b) in zip(whole.named_parameters(), short.named_parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, atol=1e-4, rtol=1e-3, msg=name)
