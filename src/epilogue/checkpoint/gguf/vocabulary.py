"""The tokenizer in llama.cpp's words: tokens with their kinds, merges, and the name of a way to cut words.

The tokenizer.json itself goes along under the key that GGUF's specification has for it, so that a file of ours gives
back the tokenizer it was made with, bit for bit; llama.cpp does not read that key.
"""

import json
from collections.abc import Mapping
from enum import IntEnum
from typing import Any

from epilogue.errors import CheckpointError
from epilogue.text import Tokenizer
from epilogue.text.tokenizer import END_OF_TEXT, PADDING

_MODEL = "tokenizer.ggml.model"
_PRE = "tokenizer.ggml.pre"
_TOKENS = "tokenizer.ggml.tokens"
_KINDS = "tokenizer.ggml.token_type"
_MERGES = "tokenizer.ggml.merges"
_DEFINITION = "tokenizer.huggingface.json"
# llama.cpp's names for cutting words as GPT-2 did (LLAMA_VOCAB_PRE_TYPE_GPT2 and its like in src/llama-vocab.cpp).
_GPT2_CUTS = ("mpt", "gpt-2", "olmo", "jais")


class _Kind(IntEnum):
    """llama.cpp's kinds of tokens, those that occur here."""

    NORMAL = 1
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5


def tokenizer_to_metadata(tokenizer: Tokenizer, num_rows: int) -> dict[str, Any]:
    """The keys of a tokenizer, with a name for every row of the embedding.

    Raises:
        CheckpointError: it cuts or merges words in a way that llama.cpp has no name for.
    """
    definition = json.loads(tokenizer.definition)
    model = definition["model"]
    _check_carried(definition)
    tokens = [f"[PAD{row}]" for row in range(num_rows)]
    kinds = [int(_Kind.UNUSED)] * num_rows
    for token, token_id in model["vocab"].items():
        tokens[token_id], kinds[token_id] = token, int(_Kind.NORMAL)
    for added in definition.get("added_tokens") or []:
        tokens[added["id"]] = added["content"]
        kinds[added["id"]] = int(_Kind.CONTROL if added["special"] else _Kind.USER_DEFINED)
    ids = {END_OF_TEXT: tokenizer.eos_id} | {token: token_id for token_id, token in enumerate(tokens)}
    unknown = ids.get(model.get("unk_token"))
    return {
        _MODEL: "gpt2",
        _PRE: "mpt",
        _TOKENS: tokens,
        _KINDS: kinds,
        _MERGES: [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]],
        "tokenizer.ggml.bos_token_id": tokenizer.eos_id,
        "tokenizer.ggml.eos_token_id": tokenizer.eos_id,
        **({} if unknown is None else {"tokenizer.ggml.unknown_token_id": unknown}),
        **({"tokenizer.ggml.padding_token_id": ids[PADDING]} if PADDING in ids else {}),
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_eos_token": False,
        _DEFINITION: tokenizer.definition,
    }


def tokenizer_from_metadata(metadata: Mapping[str, Any], *, where: str) -> Tokenizer:
    """The tokenizer of a file: the tokenizer.json inside it, else one put together from tokens and merges.

    Raises:
        CheckpointError: neither is there, or the words are cut in a way that is not known here.
    """
    definition = metadata.get(_DEFINITION)
    try:
        return Tokenizer(definition if isinstance(definition, str) else json.dumps(_definition(metadata)))
    except CheckpointError as error:
        raise CheckpointError(f"{where}: {error}") from error


def _check_carried(definition: Mapping[str, Any]) -> None:
    model, cut = definition["model"], definition.get("pre_tokenizer") or {}
    is_carried = (
        model.get("type") == "BPE"
        and not model.get("ignore_merges")
        and cut.get("type") == "ByteLevel"
        and cut.get("use_regex", True)
        and not cut.get("add_prefix_space")
        and (definition.get("normalizer") or {}).get("type") in (None, "NFC")
    )
    if not is_carried:
        raise CheckpointError(
            f"the tokenizer ({model.get('type')}, pre-tokenizer {cut.get('type')}) cuts words otherwise than GPT-2, "
            f"which is the one way that is written to GGUF; keep the model in the Hugging Face layout"
        )


def _definition(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """A tokenizer.json's content."""
    tokens, kinds, merges = metadata.get(_TOKENS), metadata.get(_KINDS), metadata.get(_MERGES, [])
    if metadata.get(_MODEL) != "gpt2" or not isinstance(tokens, list) or not isinstance(merges, list):
        raise CheckpointError(f"it has no byte-level BPE vocabulary ({_MODEL} is {metadata.get(_MODEL)!r}, not 'gpt2')")
    # Files of 2023 do not say; MPT's own tokenizer is one of these.
    if metadata.get(_PRE, "mpt") not in _GPT2_CUTS:
        raise CheckpointError(f"{_PRE} is {metadata[_PRE]!r}; known here are {', '.join(_GPT2_CUTS)}")
    if kinds is None or len(kinds) != len(tokens) or not all(isinstance(pair, str) for pair in merges):
        raise CheckpointError(f"{_KINDS} or {_MERGES} do not fit {_TOKENS}")
    kind_of = dict(enumerate(int(kind) for kind in kinds))
    added = [
        {
            "id": token_id, "content": token, "special": kind_of[token_id] == _Kind.CONTROL, "normalized": False,
            "single_word": False, "lstrip": False, "rstrip": False,
        }
        for token_id, token in enumerate(tokens)
        if kind_of[token_id] in (_Kind.CONTROL, _Kind.USER_DEFINED)
    ]  # fmt: skip
    # Added tokens too: the library gives those without a place in the vocabulary new ids.
    vocabulary = {token: i for i, token in enumerate(tokens) if kind_of[i] != _Kind.UNUSED}
    cut = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": cut,
        "decoder": cut,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": [pair.split(" ", 1) for pair in merges]},
    }
