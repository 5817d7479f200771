"""The README.md of a checkpoint that others will read: what it is, what it was made of, how far to trust it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from epilogue.model import MPTConfig, kv_bytes_per_token, num_parameters
from epilogue.text import Tokenizer


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What a checkpoint's files do not say. Each is told as unknown where it is None."""

    name: str | None = None
    """The headline; the directory's name if None."""
    licence: str | None = None
    """An identifier of the hub's, such as apache-2.0."""
    data: str | None = None
    """What it was trained on, in sentences."""


_CARD = """---
library_name: transformers
pipeline_tag: text-generation
tags: [mpt, alibi, long-context, epilogue]
{licence_line}---
# {name}

A causal language model of the MPT family, in the layout of transformers. Written by `epilogue`.

{architecture}

## Context

{context}

## Data

{data}

## Licence

{licence}

## How to use

With `pip install 'epilogue[hf]'` every switch of config.json is run as it stands, at any length:

```python
import epilogue.hf  # before the Auto classes are used
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("DIRECTORY_OR_ID")
model = AutoModelForCausalLM.from_pretrained("DIRECTORY_OR_ID")
```

{plain}

No code comes with this model: `trust_remote_code=True` changes nothing.

## Limitations and biases

The model continues text. What it says may be false, and nothing it states should be relied on as fact. It has learned
what its texts hold, so it can write what is lewd, biased or offensive, also unasked; look at what it writes before
others do. It was not tuned to follow instructions or to refuse any.
"""


def model_card(
    config: MPTConfig, *, facts: CardFacts, dtype: torch.dtype, tokenizer: Tokenizer | None, misread: Sequence[str]
) -> str:
    """The content of README.md.

    Args:
        config: what the model is.
        facts: what the files do not say.
        dtype: of the weights.
        tokenizer: the one that comes along, if any.
        misread: what plain transformers gets wrong (``misread_by_transformers``).
    """
    return _CARD.format(
        name=facts.name or "An MPT",
        licence_line=f"license: {facts.licence}\n" if facts.licence else "",
        licence=facts.licence or "Not stated by who wrote these files; ask them before you use it.",
        data=facts.data or "Not stated by who wrote these files.",
        architecture=_architecture(config, dtype, tokenizer),
        context=_context(config),
        plain=_plain(config, misread),
    )


def _architecture(config: MPTConfig, dtype: torch.dtype, tokenizer: Tokenizer | None) -> str:
    attention = config.attn_config
    rows = {
        "parameters": f"{num_parameters(config):,}, {str(dtype).removeprefix('torch.')}",
        "layers": f"{config.n_layers}",
        "d_model": f"{config.d_model}",
        "heads": f"{config.n_heads} of {config.head_dim}, {config.kv_n_heads} of keys and values",
        "feed-forward": f"{config.ffn_width}, exact GELU",
        "positions": f"ALiBi, alibi_bias_max {attention.alibi_bias_max:g}" if attention.alibi else "learned",
        "clip_qkv": "none" if attention.clip_qkv is None else f"{attention.clip_qkv:g}",
        "norms": config.norm_type + (", and on queries and keys" if attention.qk_ln or attention.qk_gn else ""),
        "biases": "none" if config.no_bias else "yes",
        "head": "tied to the embedding" if config.tie_word_embeddings else "of its own",
        "vocabulary": f"{config.vocab_size}"
        + (f", of which the tokenizer uses {tokenizer.vocab_size}" if tokenizer else ""),
        "context length": f"{config.max_seq_len:,} tokens",
    }
    return "\n".join(["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows.items())])


def _context(config: MPTConfig) -> str:
    kib = kv_bytes_per_token(config, torch.bfloat16) / 1024
    memory = f"A dense cache takes {kib:,.1f} KiB a token in bfloat16."
    if config.has_position_embedding:
        return f"Positions are learned: texts end at {config.max_seq_len:,} tokens. {memory}"
    if not config.attn_config.alibi:
        return f"There are no positions. Samples had {config.max_seq_len:,} tokens. {memory}"
    return (
        f"config.json says {config.max_seq_len:,} tokens. ALiBi is defined at any length, and how well this model "
        f"holds up past what it was trained on has to be measured. {memory}"
    )


def _plain(config: MPTConfig, misread: Sequence[str]) -> str:
    if not misread:
        return (
            f"Without `epilogue`, transformers' own MPT (5.x) computes the same as long as prompt and new tokens "
            f"together stay within {config.max_seq_len:,}; past that it fails."
        )
    clauses = "\n".join(f"- {clause}" for clause in misread)
    warning = "**Do not load it without `epilogue`.** transformers' own MPT (5.x) would answer wrongly or refuse:"
    return f"{warning}\n\n{clauses}"
