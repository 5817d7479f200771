"""One random 4-bit model of MPT-7B-StoryWriter's shape as two files: a GPTQ checkpoint and a Q4_0 .gguf.

Both hold the very same numbers: scale * (code - 8), with one fp16 scale for 128 weights, which Q4_0 says four times,
once for each of its blocks of 32. Dense weights never exist, and a few layers are drawn and written over and over under
other names: every one has bytes of its own on the disk and in memory. The embedding, which is the head as well, is made
of such numbers too: Q4_0 for llama.cpp, and bf16, exactly the same, in the checkpoint.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.peers.models import TOKENIZER
from epilogue.checkpoint.gguf.architecture import gguf_name
from epilogue.checkpoint.gguf.types import TYPE_NAMED
from epilogue.checkpoint.gguf_export import _metadata, _types, _write_header
from epilogue.checkpoint.gptq import stored_tensors
from epilogue.checkpoint.quantised import layer_shapes
from epilogue.checkpoint.save import config_json, write_directory
from epilogue.model import NAMED_SIZES, MPTConfig, Quantization, QuantWeight, pack_codes

STORYWRITER = NAMED_SIZES["mpt-7b-storywriter"]
GROUP = 128
_BLOCK = 32
# Of codes 1 to 15, all as likely, less 8.
_CODE_DEVIATION = (56 / 3) ** 0.5
# A power of two, so that the table's numbers are bf16 numbers.
_TABLE_SCALE = 2.0**-8
EMBEDDING = "transformer.wte.weight"


@dataclass(frozen=True)
class Matrix:
    """Codes and scales before they are packed in anybody's way."""

    codes_OI: Tensor
    """uint8, 1 to 15."""
    scales_OG: Tensor
    """fp16, for groups of 128."""

    @classmethod
    def drawn(cls, outputs: int, inputs: int, deviation: float, generator: torch.Generator) -> "Matrix":
        codes_OI = torch.randint(1, 16, (outputs, inputs), dtype=torch.uint8, generator=generator)
        spread_OG = 1 + 0.25 * torch.rand(outputs, -(-inputs // GROUP), generator=generator)
        return cls(codes_OI, (deviation / _CODE_DEVIATION * spread_OG).half())

    def gptq(self) -> dict[str, Tensor]:
        zeros_OG = torch.full(self.scales_OG.shape, 8, dtype=torch.int16)
        packed = pack_codes(self.codes_OI, 4)
        return stored_tensors(
            QuantWeight(4, min(GROUP, self.codes_OI.shape[1]), packed, self.scales_OG, zeros_OG), "gptq"
        )

    def q4_0(self) -> bytes:
        """Blocks of 32 weights: their scale, and bytes of which the k-th holds weights k and k + 16."""
        scales = self.scales_OG.repeat_interleave(GROUP // _BLOCK, dim=1)[:, : self.codes_OI.shape[1] // _BLOCK]
        codes = self.codes_OI.unflatten(1, (-1, 2, _BLOCK // 2))
        blocks = np.empty((*scales.shape, 2 + _BLOCK // 2), dtype=np.uint8)
        blocks[..., :2] = scales.contiguous().numpy()[..., None].view(np.uint8)
        blocks[..., 2:] = (codes[:, :, 0] | codes[:, :, 1] << 4).numpy()
        return blocks.tobytes()


def write_both(folder: Path, config: MPTConfig, *, num_distinct: int) -> tuple[Path, Path]:
    """The checkpoint's directory and the .gguf. Memory: the distinct layers, once."""
    generator = torch.Generator().manual_seed(0)
    matrices: dict[str, Matrix] = {}
    for name, (inputs, outputs) in layer_shapes(replace(config, n_layers=num_distinct)).items():
        share = (2 * config.n_layers) ** -0.5 if name.endswith(("out_proj", "down_proj")) else 1.0
        matrices[name] = Matrix.drawn(outputs, inputs, 1.22 * share / config.d_model**0.5, generator)
    table = Matrix.drawn(config.vocab_size, config.d_model, 0.0, generator)
    table = replace(table, scales_OG=torch.full_like(table.scales_OG, _TABLE_SCALE))
    checkpoint = folder / "gptq"
    _write_checkpoint(checkpoint, config, matrices, table, num_distinct)
    _write_gguf(folder / "q4_0.gguf", checkpoint, config, matrices, table, num_distinct)
    return checkpoint, folder / "q4_0.gguf"


def _source(name: str, num_distinct: int) -> str:
    """The layer that was drawn for this one."""
    transformer, blocks, number, rest = name.split(".", 3)
    return f"{transformer}.{blocks}.{int(number) % num_distinct}.{rest}"


def _write_checkpoint(
    directory: Path, config: MPTConfig, matrices: dict[str, Matrix], table: Matrix, num_distinct: int
) -> None:
    packed = {name: matrix.gptq() for name, matrix in matrices.items()}
    state = {EMBEDDING: ((table.codes_OI.to(torch.bfloat16) - 8) * _TABLE_SCALE)}
    for name in layer_shapes(config):
        state |= {f"{name}.{leaf}": tensor for leaf, tensor in packed[_source(name, num_distinct)].items()}
    norms = [f"transformer.blocks.{i}.norm_{k}.weight" for i in range(config.n_layers) for k in (1, 2)]
    state |= {name: torch.ones(config.d_model, dtype=torch.bfloat16) for name in [*norms, "transformer.norm_f.weight"]}
    a_layer = sum(x.nbytes for name, x in state.items() if name.startswith("transformer.blocks.0."))
    quantization = Quantization(bits=4, group_size=GROUP, layout="gptq", is_symmetric=True)
    write_directory(
        directory,
        state,
        config_json(replace(config, quantization=quantization), torch.bfloat16),
        tokenizer_file=TOKENIZER,
        extras={},
        # A file a layer: the same tensor cannot be twice in one.
        max_shard_bytes=a_layer,
    )


def _write_gguf(
    path: Path, directory: Path, config: MPTConfig, matrices: dict[str, Matrix], table: Matrix, num_distinct: int
) -> None:
    packed = {name: matrix.q4_0() for name, matrix in matrices.items()}
    types = _types(config, TYPE_NAMED["Q4_0"])
    with path.open("wb") as stream:
        places = _write_header(stream, path, _metadata(directory, config, "q4_0"), types)
        for name, place in places.items():
            stream.seek(place.start)
            if name == EMBEDDING:
                content = table.q4_0()
            elif name.removesuffix(".weight") in layer_shapes(config):
                content = packed[_source(name.removesuffix(".weight"), num_distinct)]
            else:
                content = np.ones(place.shape, np.float32).tobytes()
            assert len(content) == place.num_bytes, gguf_name(name)
            stream.write(content)
