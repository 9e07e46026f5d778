"""What sentence-transformers writes beside a model: which modules make a text's vector of its tokens' states."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from marctl_handlers.core.errors import LoadError
from marctl_handlers.tasks.embedding.schema import EmbeddingSettings
from marctl_handlers.text.pooling import Pooling
from marctl_handlers.text.settings import POOLING_MODES, PoolingMode

MODULES_FILE, TRANSFORMER_FILE = "modules.json", "sentence_bert_config.json"
PROMPTS_FILE = "config_sentence_transformers.json"
FLAGS: dict[str, PoolingMode] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
}
"""How releases before 6 name the modes, one flag each."""
KNOWN = ("Transformer", "Pooling", "Normalize")


def read_pooling(folder: Path, settings: EmbeddingSettings) -> Pooling:
    """As the settings say and, where they say nothing, the folder. Raises LoadError for what is not supported here."""
    modules: list[dict[str, Any]] = read(folder, MODULES_FILE, [])
    kinds = {str(module.get("type", "")).rpartition(".")[2]: str(module.get("path", "")) for module in modules}
    if unknown := sorted(set(kinds) - set(KNOWN)):
        raise LoadError(
            f"{folder.name}/{MODULES_FILE} names {', '.join(unknown)}; supported are {', '.join(KNOWN)}: this model "
            "cannot be served"
        )
    refuse_rewriting(folder)
    mode, scaled = settings.pooling, settings.normalize
    if mode is None and "Pooling" in kinds:
        mode = mode_in(folder, f"{kinds['Pooling']}/config.json")
    if scaled is None and modules:
        scaled = "Normalize" in kinds
    if mode is None or scaled is None:
        lacking = " and ".join(name for name, value in (("pooling", mode), ("normalize", scaled)) if value is None)
        raise LoadError(
            f"{folder.name}/ has no {MODULES_FILE} that tells how vectors are made; set {lacking} in model.yaml as the "
            "model was trained, for most `pooling: mean` and `normalize: true`"
        )
    return Pooling(mode, scaled)


def mode_in(folder: Path, name: str) -> PoolingMode:
    """The one way of pooling that a module's configuration names. Raises LoadError."""
    config: dict[str, Any] = read(folder, name, {})
    modes = config.get("pooling_mode", [flag for flag, on in config.items() if flag.startswith("pooling_mode_") and on])
    found = [FLAGS.get(mode, mode) for mode in ([modes] if isinstance(modes, str) else modes)]
    if len(found) != 1 or found[0] not in POOLING_MODES:
        raise LoadError(
            f"{folder.name}/{name} pools by {' and '.join(map(str, found)) or 'nothing'}; supported is one of "
            f"{', '.join(POOLING_MODES)}"
        )
    mode: PoolingMode = found[0]
    return mode


def refuse_rewriting(folder: Path) -> None:
    """Raise LoadError where sentence-transformers changes a text before it is tokenized."""
    if read(folder, TRANSFORMER_FILE, {}).get("do_lower_case"):
        raise LoadError(
            f"{folder.name}/{TRANSFORMER_FILE} sets do_lower_case, which is not supported; set it in the tokenizer"
        )
    if prompt := read(folder, PROMPTS_FILE, {}).get("default_prompt_name"):
        raise LoadError(
            f"{folder.name}/{PROMPTS_FILE} puts the prompt {prompt!r} before each text, which is not supported; remove "
            "default_prompt_name, and let clients send the prompt"
        )


def longest(folder: Path) -> int | None:
    """Tokens of the longest row that the folder's model is meant for, if it says so."""
    limit = read(folder, TRANSFORMER_FILE, {}).get("max_seq_length")
    return limit if isinstance(limit, int) else None


def read(folder: Path, name: str, missing: Any) -> Any:
    """A JSON file of the folder; `missing` if it is not there. Raises LoadError if it is damaged."""
    try:
        found = json.loads((folder / name).read_bytes())
    except FileNotFoundError:
        return missing
    except (OSError, ValueError) as err:
        raise LoadError(f"{folder.name}/{name} is damaged ({err}); save the model again") from err
    if not isinstance(found, type(missing)):
        raise LoadError(f"{folder.name}/{name} holds no JSON {'array' if missing == [] else 'object'}; save it again")
    return found
