"""Tasks as a user would write them, each a file of its own, outside of the package."""

import re
from pathlib import Path

README = (Path(__file__).parents[2] / "README.md").read_text()
[SENTIMENT] = [code for code in re.findall(r"^```python\n(.*?)^```$", README, re.M | re.S) if "Task[" in code]
"""The README's example."""

BRIGHTNESS = """\
import io

import msgspec
import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from marctl_handlers import Binary, Invalid, Task


class Seen(msgspec.Struct):
    label: str
    brightness: float


class Brightness(Task[Binary, Seen]):
    content_types = ("image/*",)
    libraries = ("torch", "pillow", "numpy")

    def load(self, folder):
        self.weights = torch.load(folder / "weights.pt")

    def check(self, question):
        try:
            Image.open(io.BytesIO(question.data)).verify()
        except (UnidentifiedImageError, OSError, SyntaxError) as err:
            raise Invalid("the body is no image that Pillow can read; send a PNG or a JPEG") from err

    def predict(self, questions, deadline):
        pixels = [Image.open(io.BytesIO(q.data)).convert("RGB").resize((8, 8)) for q in questions]
        stack = torch.stack([torch.from_numpy(np.array(image)).float() for image in pixels]) / 255
        means = (stack.flatten(1) @ self.weights).flatten().tolist()
        return [Seen("light" if mean > 0.5 else "dark", mean) for mean in means]
"""
