"""Small random multiple-choice models of every shape that users bring, made on the spot."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AlbertConfig,
    AutoModelForMultipleChoice,
    BertConfig,
    BertweetTokenizer,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    MPNetConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
)

CORPUS = [
    "What do people use to cut bread? A knife, a spoon, a pillow or a cloud.",
    "There is a light rain today, so the tourists have seen many ripples on the lake.",
    "He poured orange juice on his cereal; she poured milk on hers, naïvely.",
    "Which statement is against common sense? Where might he go? Why not 3 or 42?",
]
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def wordpiece() -> PreTrainedTokenizerFast:
    """BERT's pairs: [CLS] a [SEP] b [SEP], with token types."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=300, special_tokens=special))
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return bert_like(tokenizer)


def bert_like(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """BERT's special tokens and inputs round a tokenizer."""
    names = {kind: f"[{kind.upper()}]" for kind in ("pad", "unk", "cls", "sep", "mask")}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **{f"{kind}_token": token for kind, token in names.items()},
    )


def byte_bpe() -> PreTrainedTokenizerFast:
    """RoBERTa's pairs: <s> a </s></s> b </s>, no token types."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    )
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        cls_token="<s>",
        sep_token="</s>",
        mask_token="<mask>",
        bos_token="<s>",
        eos_token="</s>",
        model_input_names=["input_ids", "attention_mask"],
    )


def unigram() -> PreTrainedTokenizerFast:
    """DeBERTa-v2's pieces: SentencePiece-like unigrams, BERT's template, with token types."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]
    tokenizer.train_from_iterator(
        CORPUS, trainers.UnigramTrainer(vocab_size=200, special_tokens=special, unk_token="[UNK]")
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    return bert_like(tokenizer)


def bert(tokenizer: Any) -> PreTrainedConfig:
    return BertConfig(vocab_size=len(tokenizer), max_position_embeddings=128, **SMALL)


def roberta(tokenizer: Any) -> PreTrainedConfig:
    return RobertaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=130,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
        type_vocab_size=1,
        **SMALL,
    )


def deberta(tokenizer: Any) -> PreTrainedConfig:
    return DebertaV2Config(
        vocab_size=len(tokenizer),
        max_position_embeddings=128,
        relative_attention=True,
        position_buckets=16,
        pos_att_type=["p2c", "c2p"],
        type_vocab_size=2,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        **SMALL,
    )


def distilbert(tokenizer: Any) -> PreTrainedConfig:
    return DistilBertConfig(
        vocab_size=len(tokenizer), max_position_embeddings=128, dim=32, n_layers=2, n_heads=4, hidden_dim=64
    )


def character_bpe() -> BertweetTokenizer:
    """A tokenizer without a fast form; RoBERTa's template."""
    letters = sorted(set("".join(CORPUS).lower()) - {" "})
    with tempfile.TemporaryDirectory() as folder:
        vocabulary, merges = Path(folder, "vocab.txt"), Path(folder, "bpe.codes")
        vocabulary.write_text("".join(f"{piece} 1\n" for letter in letters for piece in (letter, f"{letter}@@")))
        merges.write_text("t h 1\na n 1\n")
        return BertweetTokenizer(str(vocabulary), str(merges))


def electra(tokenizer: Any) -> PreTrainedConfig:
    return ElectraConfig(vocab_size=len(tokenizer), embedding_size=16, max_position_embeddings=128, **SMALL)


def albert(tokenizer: Any) -> PreTrainedConfig:
    return AlbertConfig(vocab_size=len(tokenizer), embedding_size=16, max_position_embeddings=128, **SMALL)


def mpnet(tokenizer: Any) -> PreTrainedConfig:
    return MPNetConfig(vocab_size=len(tokenizer), max_position_embeddings=130, pad_token_id=1, **SMALL)


def modernbert(tokenizer: Any) -> PreTrainedConfig:
    ids = {"pad_token_id": 1, "cls_token_id": 0, "sep_token_id": 2, "bos_token_id": 0, "eos_token_id": 2}
    return ModernBertConfig(vocab_size=len(tokenizer), max_position_embeddings=128, **ids, **SMALL)


KINDS: dict[str, tuple[Callable[[], Any], Callable[[Any], PreTrainedConfig]]] = {
    "bert": (wordpiece, bert),
    "roberta": (byte_bpe, roberta),
    "deberta": (unigram, deberta),
    "distilbert": (wordpiece, distilbert),
    "bertweet": (character_bpe, roberta),
    "electra": (wordpiece, electra),
    "albert": (unigram, albert),
    "mpnet": (byte_bpe, mpnet),
    "modernbert": (byte_bpe, modernbert),
}


def save_tiny(kind: str, folder: Path, seed: int = 0, scale: float = 20.0) -> Path:
    """`save_pretrained` a model and its tokenizer. `scale` widens the weights, so that answers differ visibly."""
    make_tokenizer, make_config = KINDS[kind]
    tokenizer = make_tokenizer()
    if kind == "distilbert":
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
    torch.manual_seed(seed)
    model = AutoModelForMultipleChoice.from_config(make_config(tokenizer))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(scale)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
