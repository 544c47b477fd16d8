"""The character-level tokenizer of the built-in model: the family's special tokens and one token per byte.

Ids 0, 1 and 2 are BOS, EOS and padding as in the published tokenizer; 3 to 258 are the bytes; the family's other
special tokens follow. There are no merges: a model of this size learns single characters, and no text is out of
vocabulary.
"""

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from .tasks import FREE

BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
BOS_ID, EOS_ID, PAD_ID = 0, 1, 2
TRAILING_SPECIALS = (
    "<image>", "<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>", "<|grounding|>", "<td>", "</td>", "<tr>", "</tr>",
    "<|User|>", "<|Assistant|>",
)  # fmt: skip
IMAGE_ID = 259
VOCAB_SIZE = 288
"""Rows of the embedding: 271 tokens, rounded up to a multiple of 32; as in the published model some have no token."""


def build_tokenizer() -> Tokenizer:
    """Return the tokenizer: byte-level BPE without merges, BOS in front when special tokens are asked for."""
    vocab = {BOS: BOS_ID, EOS: EOS_ID, PAD: PAD_ID}
    for byte in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocab[byte] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS}:1 $B:1", special_tokens=[(BOS, BOS_ID)]
    )
    tokenizer.add_special_tokens(
        [AddedToken(text, special=True, normalized=False) for text in (BOS, EOS, PAD, *TRAILING_SPECIALS)]
    )
    if tokenizer.token_to_id("<image>") != IMAGE_ID:
        raise AssertionError(f"<image> has id {tokenizer.token_to_id('<image>')}, expected {IMAGE_ID}")
    return tokenizer


def prompt_ids(tokenizer: Tokenizer, image_tokens: int, prompt: str = FREE) -> list[int]:
    """Return BOS, `image_tokens` image slots and the encoded rest of the prompt."""
    tail = tokenizer.encode(prompt.removeprefix("<image>"), add_special_tokens=False).ids
    return [BOS_ID, *[IMAGE_ID] * image_tokens, *tail]


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and special_tokens_map.json in the published layout."""
    tokenizer.save(str(folder / "tokenizer.json"))

    def entry(text: str) -> dict[str, object]:
        return {"content": text, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}

    specials = (BOS, EOS, PAD, *TRAILING_SPECIALS)
    tokenizer_config = {
        "add_bos_token": True,
        "add_eos_token": False,
        "add_prefix_space": None,
        "added_tokens_decoder": {
            str(tokenizer.token_to_id(text)): {**entry(text), "special": True} for text in specials
        },
        "additional_special_tokens": ["<|User|>", "<|Assistant|>"],
        "bos_token": BOS,
        "clean_up_tokenization_spaces": False,
        "eos_token": EOS,
        "extra_special_tokens": {},
        "model_max_length": 4096,
        "pad_token": PAD,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": None,
    }
    special_map = {
        "additional_special_tokens": [entry("<|User|>"), entry("<|Assistant|>")],
        "bos_token": entry(BOS),
        "eos_token": entry(EOS),
        "pad_token": entry(PAD),
    }
    for name, value in (("tokenizer_config.json", tokenizer_config), ("special_tokens_map.json", special_map)):
        (folder / name).write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
