"""A dense checkpoint to a quantised one, block after block, with what flows between blocks on disk.

Memory: one block in fp32, the moments of one layer's inputs and their inverse, and one sample. Disk: beside the result,
two files of 4 * C bytes a token of calibration, and four for a token held out. An interrupted run goes on at the block
it was in.
"""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from epilogue.checkpoint.files import read_json
from epilogue.checkpoint.gptq import stored_tensors
from epilogue.checkpoint.metadata import TOKENIZER
from epilogue.checkpoint.parts import Parts
from epilogue.checkpoint.save import config_json, write_directory
from epilogue.errors import CheckpointError
from epilogue.model import QUANTISED_LAYERS, MPTConfig, Quantization, QuantWeight, dense
from epilogue.model.blocks import Block
from epilogue.quant.activations import Activations
from epilogue.quant.block import advance, quantise_block
from epilogue.quant.gptq import Scheme, output_error, round_to_nearest, solve
from epilogue.quant.held_out import embed, measure
from epilogue.quant.job import Job, LayerReport, Report

REPORT = "quantization_report.json"
# The share of a query's probability that calibration's attention may leave out: below what fp32 rounds.
_EPSILON = 1e-6
_SHARD_BYTES = 2_000_000_000


def quantise_checkpoint(
    job: Job,
    *,
    on_start: Callable[[int, int], None] = lambda done, total: None,
    on_layer: Callable[[LayerReport], None] = lambda report: None,
) -> Report:
    """Quantise, write the checkpoint with its report, and measure it on the held-out text.

    Args:
        job: what to do; unfinished work of the same job is taken up.
        on_start: called once with the number of blocks that are done and of all.
        on_layer: called behind every layer.

    Raises:
        CheckpointError: the source cannot be read or is quantised already, shapes do not fit the words of GPTQ, ``out``
            exists, or unfinished work of another job lies in its place.
    """
    if job.out.exists():
        raise CheckpointError(f"{job.out} exists already; remove it or choose another place")
    run = _Run(job, Parts(job.source))
    on_start(run.num_done, run.config.n_layers)
    for index in range(run.num_done, run.config.n_layers):
        run.quantise(index, on_layer)
    return run.finish()


class _Run:
    """The state of a job, in memory and on disk."""

    def __init__(self, job: Job, parts: Parts) -> None:
        self.job, self.parts, self.config = job, parts, parts.config
        _check_shapes(self.config, job.scheme)
        self._place = job.workplace
        self._layers: list[LayerReport] = []
        self.num_done = 0
        fingerprint = job.fingerprint(self.config)
        if self._place.exists():
            self._take_up(fingerprint)
        else:
            self._place.mkdir(parents=True)
            self._begin()
            self._note(fingerprint)
        self._fingerprint = fingerprint

    def _take_up(self, fingerprint: str) -> None:
        if not (self._place / "state.json").exists():  # stopped before the first note
            self._begin()
            self._note(fingerprint)
            return
        state = read_json(self._place / "state.json")
        if state.get("fingerprint") != fingerprint:
            raise CheckpointError(
                f"{self._place} holds unfinished work of another model, other settings or other books; give those "
                f"again to go on, or remove it"
            )
        self.num_done = state["num_done"]
        self._layers = [LayerReport(**layer) for layer in state["layers"]]

    def _note(self, fingerprint: str) -> None:
        state = {
            "fingerprint": fingerprint,
            "num_done": self.num_done,
            "layers": [asdict(layer) for layer in self._layers],
        }
        new = self._place / "state.json.new"
        new.write_text(json.dumps(state), encoding="utf-8")
        new.replace(self._place / "state.json")

    def _stream(self, name: str, samples: list[list[int]], step: int) -> Activations:
        """Hidden states before block ``step``; two files take turns."""
        lengths = [len(ids) for ids in samples]
        return Activations(self._place / f"{name}-{step % 2}.f32", lengths, self.config.d_model)

    def _streams(self, step: int) -> tuple[Activations, Activations, Activations]:
        """Calibration, and the held-out text in the dense and in the quantised model."""
        calibration = self.job.calibration if self.job.method == "gptq" else []
        held_out = self.job.held_out.samples
        return (
            self._stream("calibration", calibration, step),
            self._stream("dense", held_out, step),
            self._stream("quantised", held_out, step),
        )

    @torch.inference_mode()
    def _begin(self) -> None:
        names = [name for name in self.parts.dtypes if name.startswith(("transformer.wte", "transformer.wpe"))]
        tables = self.parts.read(names, dtype=torch.float32)
        calibration, dense_text, quantised_text = self._streams(0)
        for stream, samples in (
            (calibration, self.job.calibration),
            (dense_text, self.job.held_out.samples),
            (quantised_text, self.job.held_out.samples),
        ):
            for sample in range(len(stream)):
                stream.write(sample, embed(tables, samples[sample], self.config))

    @torch.inference_mode()
    def quantise(self, index: int, on_layer: Callable[[LayerReport], None]) -> None:
        """One block: the dense text through it, its layers quantised, the quantised text through it, all noted."""
        prefix = f"transformer.blocks.{index}."
        names = [name for name in self.parts.dtypes if name.startswith(prefix)]
        block = _load_block(self.config, {n.removeprefix(prefix): x for n, x in self._read(names).items()})
        before, after = self._streams(index), self._streams(index + 1)
        advance(block, before[1], after[1])
        packed: dict[str, QuantWeight] = {}
        reports: list[LayerReport] = []

        def quantise(name: str, linear: nn.Module, moments_II: Tensor | None) -> None:
            start, weight_OI = time.perf_counter(), linear.get_parameter("weight")
            nearest = round_to_nearest(weight_OI, self.job.scheme)
            chosen = nearest if moments_II is None else solve(weight_OI, moments_II, self.job.scheme)
            errors = [output_error(weight_OI, dense(x), moments_II) for x in (nearest, chosen)]
            packed[name] = chosen
            weight_OI.copy_(dense(chosen))
            seconds = time.perf_counter() - start
            reports.append(
                LayerReport(block=index, layer=name, error_nearest=errors[0], error=errors[1], seconds=seconds)
            )
            on_layer(reports[-1])

        if self.job.method == "gptq":
            quantise_block(block, before[0], after[0], quantise)
        else:
            for name in QUANTISED_LAYERS:
                quantise(name, block.get_submodule(name), None)
        advance(block, before[2], after[2])
        self._keep(index, packed, [n for n in names if n.removeprefix(prefix).removesuffix(".weight") not in packed])
        for stream in after:
            stream.flush()
        self._layers += reports
        self.num_done = index + 1
        self._note(self._fingerprint)

    def _read(self, names: list[str]) -> dict[str, Tensor]:
        return self.parts.read(names, dtype=torch.float32)

    def _keep(self, index: int, packed: dict[str, QuantWeight], others: list[str]) -> None:
        """The block as it will be in the checkpoint."""
        tensors = self.parts.read(others)
        for name, weight in packed.items():
            for leaf, tensor in stored_tensors(weight, "gptq").items():
                tensors[f"transformer.blocks.{index}.{name}.{leaf}"] = tensor
        save_file(tensors, self._block_file(index))

    def _block_file(self, index: int) -> Path:
        return self._place / f"block-{index:05}.safetensors"

    @torch.inference_mode()
    def finish(self) -> Report:
        """Measure, put the checkpoint together, and clear the workplace."""
        rest = [name for name in self.parts.dtypes if ".blocks." not in name]
        tensors = self.parts.read(rest, dtype=torch.float32)
        _, dense_text, quantised_text = self._streams(self.config.n_layers)
        report = Report(
            layers=self._layers,
            dense_bits_per_byte=measure(tensors, dense_text, self.job.held_out, self.config),
            quantised_bits_per_byte=measure(tensors, quantised_text, self.job.held_out, self.config),
            held_out_tokens=sum(map(len, self.job.held_out.samples)),
            calibration_tokens=sum(map(len, self.job.calibration)) if self.job.method == "gptq" else 0,
        )
        del tensors
        self._write(rest, report)
        shutil.rmtree(self._place)
        return report

    def _write(self, rest: list[str], report: Report) -> None:
        state = self.parts.read(rest)
        dtype = state["transformer.wte.weight"].dtype
        for index in range(self.config.n_layers):
            with safe_open(self._block_file(index), framework="pt") as file:
                state |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        tokenizer = self.job.source / TOKENIZER
        scheme = self.job.scheme
        quantization = Quantization(
            bits=scheme.bits,
            group_size=scheme.group_size,
            layout="gptq",
            has_act_order=scheme.has_act_order and self.job.method == "gptq",
            is_symmetric=scheme.is_symmetric,
        )
        told: dict[str, Any] = {"method": self.job.method, "scheme": asdict(scheme)} | asdict(report)
        write_directory(
            self.job.out,
            state,
            config_json(replace(self.config, quantization=quantization), dtype),
            tokenizer_file=tokenizer if tokenizer.is_file() else None,
            extras={REPORT: json.dumps(told, indent=2) + "\n"},
            max_shard_bytes=_SHARD_BYTES,
        )


def _load_block(config: MPTConfig, state: dict[str, Tensor]) -> Block:
    with torch.device("meta"):
        block = Block(config, 0)
    block.load_state_dict(state, assign=True)
    block.attn.epsilon = _EPSILON
    return block.eval()


def _check_shapes(config: MPTConfig, scheme: Scheme) -> None:
    """The words of GPTQ hold 32 bits of codes along the inputs, and of zero points along the outputs."""
    per_word = 32 // scheme.bits
    if config.d_model % per_word or config.ffn_width % per_word or config.qkv_width % per_word:
        raise CheckpointError(
            f"the widths {config.d_model}, {config.qkv_width} and {config.ffn_width} of this model do not all divide "
            f"by {per_word}, as GPTQ's files want for {scheme.bits} bits; it cannot be quantised that way"
        )
