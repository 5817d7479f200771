"""One block at a time: run over samples that lie on disk, and quantised from the inputs its layers then have.

Layers are quantised in the order in which they are used, each on inputs that the quantised ones before it have made.
"""

from collections.abc import Iterator
from typing import Protocol

from torch import Tensor, nn

from epilogue.model.blocks import Block
from epilogue.quant.activations import Activations

# Tokens that go through the feed-forward at once.
_CHUNK_TOKENS = 4096


class Quantise(Protocol):
    """Replaces the weight of a layer by a quantised one, given the moments of its inputs."""

    def __call__(self, name: str, linear: nn.Module, moments_II: Tensor) -> None:
        """The layer's name within its block, the layer, and the sum of x x^T over its inputs x."""
        ...


def advance(block: Block, inputs: Activations, outputs: Activations) -> None:
    """Send every sample through the block."""
    for sample in range(len(inputs)):
        x_TC = inputs.read(sample)
        x_TC += block.attn.out_proj(_mixed(block, x_TC))
        _feed_forward(block, x_TC)
        outputs.write(sample, x_TC)


def quantise_block(block: Block, inputs: Activations, outputs: Activations, quantise: Quantise) -> None:
    """Quantise a block's four layers on the samples, and send the samples through the quantised block.

    ``outputs`` also holds what the block has half done; ``inputs`` is left as it was. Attention runs once.

    Memory: one sample's attention, and the moments of one layer's inputs.
    """
    samples = range(len(inputs))
    quantise("attn.Wqkv", block.attn.Wqkv, _moments(block.norm_1(inputs.read(i)) for i in samples))

    def mixed() -> Iterator[Tensor]:
        for i in samples:
            a_TC = _mixed(block, inputs.read(i))
            outputs.write(i, a_TC)
            yield a_TC

    quantise("attn.out_proj", block.attn.out_proj, _moments(mixed()))

    def joined() -> Iterator[Tensor]:
        for i in samples:
            x_TC = inputs.read(i) + block.attn.out_proj(outputs.read(i))
            outputs.write(i, x_TC)
            yield block.norm_2(x_TC)

    quantise("ffn.up_proj", block.ffn.up_proj, _moments(joined()))
    quantise(
        "ffn.down_proj", block.ffn.down_proj, _moments(h for i in samples for h in _activated(block, outputs.read(i)))
    )
    for i in samples:
        x_TC = outputs.read(i)
        _feed_forward(block, x_TC)
        outputs.write(i, x_TC)


def _mixed(block: Block, x_TC: Tensor) -> Tensor:
    mixed_BTC: Tensor = block.attn.mix(block.norm_1(x_TC)[None])
    return mixed_BTC[0]


def _activated(block: Block, x_TC: Tensor) -> Iterator[Tensor]:
    for part_TC in x_TC.split(_CHUNK_TOKENS):
        yield block.ffn.widen(block.norm_2(part_TC))


def _feed_forward(block: Block, x_TC: Tensor) -> None:
    """Add the feed-forward's output, in place."""
    for part_TC in x_TC.split(_CHUNK_TOKENS):
        part_TC += block.ffn(block.norm_2(part_TC))


def _moments(inputs: Iterator[Tensor]) -> Tensor:
    """Sum of x x^T over all rows."""
    total_II: Tensor | None = None
    for x_TI in inputs:
        total_II = x_TI.T @ x_TI if total_II is None else total_II.addmm_(x_TI.T, x_TI)
    assert total_II is not None
    return total_II
