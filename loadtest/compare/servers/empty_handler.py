"""Answers every request with the same bytes: what TorchServe itself costs."""


def handle(data, context):
    return [b'{"prediction":0,"label":"a","probabilities":[1.0]}'] * len(data) if data else None
