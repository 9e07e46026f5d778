"""A fast tokenizer from an archive, without transformers, whose import takes seconds of a worker's start.

tokenizer.json alone does not tell which token fills rows up, nor whether the model is given token types: transformers
keeps that elsewhere. `record` writes it beside the file when the archive is built, after a comparison.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import msgspec
from tokenizers import Tokenizer

from marctl_handlers.text.hub import load_tokenizer, read_config, refuse_other_vocabulary

TOKENIZER_FILE, FACTS_FILE = "tokenizer.json", "tokenizer_facts.json"
PROBES = (("is water wet", "yes"), ("is water wet", None))


class Facts(msgspec.Struct, frozen=True):
    """What is true of the tokenizer.json with this digest."""

    sha256: str
    pad_token_id: int | None
    has_type_ids: bool


class SavedTokenizer:
    """What rows are made with, as transformers' tokenizers have it."""

    is_fast = True

    def __init__(self, tokenizer: Tokenizer, facts: Facts) -> None:
        self.backend_tokenizer = tokenizer
        self.pad_token_id = facts.pad_token_id
        self._has_type_ids = facts.has_type_ids

    def __len__(self) -> int:
        return self.backend_tokenizer.get_vocab_size()

    def __call__(self, first: str, second: str | None = None, **_: bool) -> dict[str, list[int]]:
        """One text or pair with its special tokens, neither cut nor filled up."""
        self.backend_tokenizer.no_truncation()
        self.backend_tokenizer.no_padding()
        encoding = self.backend_tokenizer.encode(first, second)
        types = {"token_type_ids": encoding.type_ids} if self._has_type_ids else {}
        return {"input_ids": encoding.ids, **types}


def record(folder: Path, tokenizer: Any) -> None:
    """Beside a saved tokenizer, what `open_tokenizer` needs; nothing for one that the file alone is not enough for."""
    path = folder / TOKENIZER_FILE
    if not (getattr(tokenizer, "is_fast", False) and path.is_file()):
        return
    types = "token_type_ids" in tokenizer.model_input_names
    facts = Facts(digest(path), tokenizer.pad_token_id, types)
    if is_same(tokenizer, SavedTokenizer(Tokenizer.from_file(str(path)), facts)):
        (folder / FACTS_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(facts), indent=1) + b"\n")


def is_same(tokenizer: Any, saved: SavedTokenizer) -> bool:
    """Whether both make the same rows of any texts."""
    for probe in PROBES:
        whole = tokenizer(*probe, truncation=False, padding=False)
        if saved(*probe) != {name: whole[name] for name in ("input_ids", "token_type_ids") if name in whole}:
            return False
    # Both neither cut nor fill up any more.
    same: bool = saved.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    return same and len(saved) == len(tokenizer)


def open_tokenizer(folder: Path) -> Any:
    """The folder's tokenizer for rows: by itself where the build recorded what that takes, else by transformers.

    Raises LoadError.
    """
    path = folder / TOKENIZER_FILE
    try:
        facts = msgspec.json.decode((folder / FACTS_FILE).read_bytes(), type=Facts)
        if digest(path) != facts.sha256:
            return load_tokenizer(folder)
    except (OSError, msgspec.DecodeError):
        return load_tokenizer(folder)
    tokenizer = SavedTokenizer(Tokenizer.from_file(str(path)), facts)
    refuse_other_vocabulary(folder, read_config(folder), len(tokenizer))
    return tokenizer


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
