"""The names that other programs give the tensors of an MPT, and ours.

Ours are MosaicML's own (``transformer.blocks.0.attn.Wqkv.weight``), which transformers shares. Composer, FSDP,
``torch.compile`` and activation checkpointing put words in between, and some versions stored what is not a weight.
"""

import re

EMBEDDING = "transformer.wte.weight"
POSITIONS = "transformer.wpe.weight"
HEAD = "lm_head.weight"

# Applied from top to bottom.
_RENAMED = (
    # Wrappers around modules; norm_attn_norm is llm-foundry's grouping of a block's first half (fuse_norm_attn_norm).
    (re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|norm_attn_norm)\."), ""),
    # Composer's model and DataParallel's module.
    (re.compile(r"^(?:(?:module|model)\.)+"), ""),
    # The transformer saved without the class that adds the head.
    (re.compile(r"^(?=(?:wte|wpe|blocks|norm_f)\.)"), "transformer."),
)
# Biases, masks and positions: computed here from the config, never read.
_DROPPED = re.compile(r"(?:^|\.)(?:attn_bias|alibi|position_ids|masked_bias|causal_mask|slopes)$")


def own_name(foreign: str, *, is_tied: bool) -> str | None:
    """Our name of a tensor in a foreign checkpoint; None for buffers that are not weights.

    With a tied head, ``lm_head.weight`` is another name of the embedding.
    """
    name = foreign
    for pattern, replacement in _RENAMED:
        name = pattern.sub(replacement, name)
    if _DROPPED.search(name):
        return None
    return EMBEDDING if is_tied and name == HEAD else name
