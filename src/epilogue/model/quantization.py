"""How a checkpoint's weights are quantised, as its config.json says it: the keys of GPTQ's writers, read strictly.

AutoGPTQ, GPTQModel and transformers write a ``quantization_config`` (or the same table as a file of its own);
KoboldAI's 4-bit fork wrote ``gptq_bits``, ``gptq_groupsize`` and ``gptq_version``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from epilogue.errors import CheckpointError
from epilogue.kernels.quant_linear import KNOWN_BITS

Layout = Literal["gptq", "gptq_v2", "kobold-0", "kobold-1"]
"""How codes, scales and zero points lie in a file; docs/formats.md has the table. KoboldAI's version 2 is "gptq"."""

KOBOLD_KEYS = ("gptq_bits", "gptq_groupsize", "gptq_version")
_KOBOLD_LAYOUTS: tuple[Layout, ...] = ("kobold-0", "kobold-1", "gptq")
_LAYOUTS: tuple[Layout, ...] = get_args(Layout)

# Switches that would change what the tensors mean, and the values at which they do not.
_WITHOUT_EFFECT: Mapping[str, tuple[Any, ...]] = {
    "lm_head": (False, None),
    "dynamic": (None, {}),
    "is_marlin_format": (False, None),
    "pack_dtype": ("int32", None),
    "rotation": (None, False),
}


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """What is known of a quantised model before its tensors are read: Wqkv, out_proj, up_proj, down_proj of each block.

    Raises:
        ValueError: bits or group sizes that are not run here.
    """

    bits: int = 4
    """4 or 8."""
    group_size: int | None = None
    """Inputs that share a scale; -1 for all of an output's; None if nobody said, and the tensors decide."""
    layout: Layout | None = None
    """None if nobody said."""
    has_act_order: bool = False
    """Whether groups were made in an order of the inputs by their weight in calibration."""
    is_symmetric: bool | None = None
    """Whether every zero point is the middle of the range; None if nobody said."""

    def __post_init__(self) -> None:
        if self.bits not in KNOWN_BITS:
            raise ValueError(f"weights of {self.bits} bits are not run here; only 4 and 8 are")
        if self.group_size is not None and not (self.group_size == -1 or 0 < self.group_size < 2**31):
            raise ValueError(f"group size {self.group_size} is neither -1 nor positive")

    def group_of(self, in_features: int) -> int:
        """Inputs of a group in a layer of so many.

        Raises:
            ValueError: nobody said.
        """
        if self.group_size is None:
            raise ValueError("the group size is not known before the tensors are read")
        return in_features if self.group_size == -1 else min(self.group_size, in_features)


def read_quantization(raw: Mapping[str, Any], where: str) -> Quantization | None:
    """What a config.json, or a quantize_config.json put under ``quantization_config``, says; None if nothing.

    Raises:
        CheckpointError: another method than GPTQ, a width, layout or switch that is not run here, or both spellings at
            once with different content.
    """
    table, kobold = raw.get("quantization_config"), {key: raw[key] for key in KOBOLD_KEYS if raw.get(key) is not None}
    if table is None and not kobold:
        return None
    try:
        found = [_from_table(table, where)] if table is not None else []
        if kobold:
            found.append(_from_kobold(kobold, where))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{where} cannot be run: {error}") from error
    if len(found) == 2 and (found[0].bits, found[0].group_size) != (found[1].bits, found[1].group_size):
        raise CheckpointError(
            f"{where} says two things about its quantisation: quantization_config has bits {found[0].bits} and "
            f"group_size {found[0].group_size}, gptq_bits and gptq_groupsize are {found[1].bits} and "
            f"{found[1].group_size}; remove what is wrong"
        )
    return found[0]


def _from_table(table: Any, where: str) -> Quantization:
    if not isinstance(table, Mapping):
        raise CheckpointError(f"{where} says quantization_config = {table!r}; wanted a table of settings")
    method = table.get("quant_method", table.get("method", "gptq"))
    if method != "gptq":
        raise CheckpointError(f"{where} says quant_method = {method!r}, which is not run here; only 'gptq' is")
    for name, allowed in _WITHOUT_EFFECT.items():
        if table.get(name) not in allowed:
            raise CheckpointError(
                f"{where} says {name} = {table[name]!r} in its quantization_config, which is not run here; "
                f"only {' or '.join(map(repr, allowed))} is"
            )
    layout = table.get("checkpoint_format", table.get("format", "gptq"))
    if layout not in ("gptq", "gptq_v2"):
        raise CheckpointError(f"{where} says checkpoint_format = {layout!r}; 'gptq' and 'gptq_v2' are read here")
    group_size = table.get("group_size")
    return Quantization(
        bits=_whole("bits", table.get("bits"), where),
        group_size=None if group_size is None else _whole("group_size", group_size, where),
        layout=layout,
        has_act_order=table.get("desc_act") is True,
        is_symmetric=table.get("sym") if isinstance(table.get("sym"), bool) else None,
    )


def _from_kobold(keys: Mapping[str, Any], where: str) -> Quantization:
    if "gptq_bits" not in keys:
        raise CheckpointError(f"{where} says {next(iter(keys))} and no gptq_bits; add it")
    version = _whole("gptq_version", keys.get("gptq_version", -1), where)
    if version not in (-1, 0, 1, 2):
        raise CheckpointError(f"{where} says gptq_version = {version}; known are 0, 1 and 2")
    return Quantization(
        bits=_whole("gptq_bits", keys["gptq_bits"], where),
        # Where the key is missing the file's own name may say it, or the tensors do.
        group_size=None if "gptq_groupsize" not in keys else _whole("gptq_groupsize", keys["gptq_groupsize"], where),
        # A version that is not written down means 1 to the fork, whatever the file holds; the tensors know better.
        layout=None if version == -1 else _KOBOLD_LAYOUTS[version],
    )


def _whole(name: str, value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise CheckpointError(f"{where} says {name} = {value!r}; wanted a whole number")
    return value


def write_quantization(quantization: Quantization) -> dict[str, Any]:
    """The ``quantization_config`` that says the same, in the words of AutoGPTQ, GPTQModel and transformers.

    Raises:
        ValueError: a layout or group size nobody said, or a layout that these words do not have.
    """
    if quantization.layout not in ("gptq", "gptq_v2") or quantization.group_size is None:
        raise ValueError(f"{quantization} cannot be said as a quantization_config")
    return {
        "quant_method": "gptq",
        "bits": quantization.bits,
        "group_size": quantization.group_size,
        "desc_act": quantization.has_act_order,
        "sym": bool(quantization.is_symmetric),
        "lm_head": False,
        "checkpoint_format": quantization.layout,
        "pack_dtype": "int32",
    }
