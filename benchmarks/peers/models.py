"""The models that are compared, as checkpoints with a .gguf beside them."""

from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import torch

from epilogue.checkpoint import export_gguf, load_checkpoint, save_checkpoint
from epilogue.model import MPT, AttentionConfig, MPTConfig

BUNDLED = Path(str(files("epilogue"))) / "bundled" / "epilogue-tiny"
TOKENIZER = BUNDLED / "tokenizer.json"
STORYWRITER_LIKE = MPTConfig(
    d_model=512, n_heads=8, n_layers=8, max_seq_len=65536, vocab_size=8192, no_bias=True,
    attn_config=AttentionConfig(alibi=True, alibi_bias_max=16, clip_qkv=6.0),
)  # fmt: skip
NEEDLE_LIKE = replace(STORYWRITER_LIKE, d_model=64, n_heads=4, n_layers=2)
NEEDLE = 8191
NEEDLE_POSITION = 10


def bundled(folder: Path) -> tuple[MPT, Path]:
    """The model that comes along, and its .gguf in f16."""
    export_gguf(BUNDLED, folder / "bundled.gguf", weight_type="f16")
    return load_checkpoint(BUNDLED, dtype=torch.float32).model, folder / "bundled.gguf"


def storywriter_like(folder: Path) -> tuple[MPT, Path]:
    """Random weights with StoryWriter's slopes and clamp; matrices are normal with deviation 1.22 / sqrt(d_model).

    A LayerNorm's output has variance 1, so queries and keys have 1.5 and their scores a deviation of about 1.5: neither
    uniform attention nor all of it on one key.
    """
    return _written(_drawn(STORYWRITER_LIKE), folder / "storywriter-like", weight_type="f16")


def needle_like(folder: Path) -> tuple[MPT, Path]:
    """Two layers in which the flattest head of the first looks for one token, however far back.

    Every embedding but the needle's lies along ``asks`` and off ``answers``, the needle's along ``answers``; the head's
    queries read the first direction, its keys and values the second. So the needle's score is some 40 nats where other
    keys have about 0, and the slope takes 1.1 nats of that over 70,000 tokens. Exported as f32, so that what differs is
    not the weights' rounding.
    """
    model = _drawn(NEEDLE_LIKE)
    d_model, head_dim = NEEDLE_LIKE.d_model, NEEDLE_LIKE.head_dim
    generator = torch.Generator().manual_seed(1)
    frame_CC = torch.linalg.qr(torch.randn(d_model, d_model - 1, generator=generator) - 0.0)[0]
    frame_CC = frame_CC - frame_CC.mean(dim=0)  # LayerNorm takes the mean out
    asks_C, answers_C = torch.linalg.qr(frame_CC[:, :2])[0].T
    with torch.no_grad():
        wte = model.transformer.wte.weight
        wte -= (wte @ answers_C)[:, None] * answers_C
        wte += asks_C * wte.norm(dim=1, keepdim=True)
        wte[NEEDLE] = answers_C * wte.norm(dim=1).mean()
        qkv = model.transformer.blocks[0].attn.Wqkv.weight  # type: ignore[union-attr, index]
        last = slice(d_model - head_dim, d_model)
        # Normed, a filler has about sqrt(d_model / 2) along asks, the needle sqrt(d_model) along answers.
        qkv[last] = asks_C * 4.5 / (d_model / 2) ** 0.5
        qkv[d_model:][last] = answers_C * 4.5 / d_model**0.5
        qkv[2 * d_model :][last] = answers_C * 4.5 / d_model**0.5 * torch.randn(head_dim, 1, generator=generator).sign()
    return _written(model, folder / "needle-like", weight_type="f32")


def _drawn(config: MPTConfig) -> MPT:
    model = MPT(config)
    model.init_weights(std=1.22 / config.d_model**0.5, seed=0)
    # Both programs then hold the same numbers.
    return model.half().float()


def _written(model: MPT, checkpoint: Path, *, weight_type: str) -> tuple[MPT, Path]:
    save_checkpoint(checkpoint, model.state_dict(), model.config, tokenizer_file=TOKENIZER)
    export_gguf(checkpoint, checkpoint.with_suffix(".gguf"), weight_type=weight_type)
    return model.eval(), checkpoint.with_suffix(".gguf")
