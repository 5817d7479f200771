"""A checkpoint as a directory that transformers loads: weights, tokenizer, generation settings, a model card."""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import huggingface_hub
import torch

from epilogue.checkpoint.files import read_tensors, reason
from epilogue.checkpoint.load import load_checkpoint
from epilogue.checkpoint.metadata import load_config, load_tokenizer
from epilogue.checkpoint.model_card import CardFacts, model_card
from epilogue.checkpoint.plain_transformers import misread_by_transformers
from epilogue.checkpoint.save import save_checkpoint
from epilogue.checkpoint.staging import whole_folder
from epilogue.errors import CheckpointError
from epilogue.model import MPT, MPTConfig
from epilogue.text import Tokenizer

_CARD = "README.md"
_SOURCE_CARD = "README-source.md"
_LICENCE = re.compile(r"\A---\n(?:(?!---\n).*\n)*?license: *([\w.-]+) *\n")


@dataclass(frozen=True)
class ExportedHF:
    """What was written."""

    directory: Path
    misread: list[str]
    """What transformers' own MPT would get wrong, a clause each; the card says it too."""
    url: str | None
    """Where it was pushed to."""


def export_hf(
    source: str | Path,
    out: str | Path,
    *,
    dtype: torch.dtype | None = None,
    facts: CardFacts | None = None,
    push_to: str | None = None,
) -> ExportedHF:
    """Write a directory for transformers, and report it only after it has been read back and found the same.

    No code is written: `trust_remote_code=True` has nothing to run, and where transformers' own MPT falls short the
    card sends its readers to ``epilogue.hf``.

    Args:
        source: a checkpoint's directory, or ``owner/name`` on the hub.
        out: a directory that is not there yet, or empty. It appears whole or not at all.
        dtype: float32, float16, bfloat16 or float64; None for that of the source.
        facts: name, licence and data for the card. The source's own card comes along, and is asked for its licence.
        push_to: an ``owner/name`` of the hub to upload to afterwards, made private if there is none.

    Raises:
        CheckpointError: the source cannot be read, ``out`` not be written or is taken, what was written differs when it
            is read back, or the hub refuses (the directory is there then).
        ValueError: another dtype.

    Memory: the weights, and one shard.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError(f"{out} is there already; name a directory that is not")
    checkpoint = load_checkpoint(source, dtype=dtype)
    tokenizer = load_tokenizer(checkpoint.directory, checkpoint.config)
    misread = misread_by_transformers(checkpoint.config)
    config = _with_ids(checkpoint.config, tokenizer)
    source_card = _read_card(checkpoint.directory)
    card = model_card(
        config,
        facts=_with_source(facts or CardFacts(), source_card, out),
        dtype=checkpoint.dtype,
        tokenizer=tokenizer,
        misread=misread,
    )
    with whole_folder(out) as partial:
        if source_card is not None:
            (partial / _SOURCE_CARD).write_text(source_card, encoding="utf-8")
        _write(partial, checkpoint.model, config, tokenizer=tokenizer, card=card)
        _check_written(partial, checkpoint.model, config, tokenizer)
    return ExportedHF(out, misread, None if push_to is None else _push(out, push_to))


def _write(directory: Path, model: MPT, config: MPTConfig, *, tokenizer: Tokenizer, card: str) -> None:
    tokenizer.save(directory)
    settings = json.dumps(_tokenizer_config(tokenizer, config), indent=2) + "\n"
    (directory / "tokenizer_config.json").write_text(settings, encoding="utf-8")
    save_checkpoint(directory, model.state_dict(), config, card=card)


def _with_ids(config: MPTConfig, tokenizer: Tokenizer) -> MPTConfig:
    """The config with the tokenizer's ids, which generation ends and pads by."""
    ids = {"eos_token_id": tokenizer.eos_id, "bos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.padding_id}
    return replace(config, extra=dict(config.extra) | {key: value for key, value in ids.items() if value is not None})


def _tokenizer_config(tokenizer: Tokenizer, config: MPTConfig) -> dict[str, Any]:
    """The library's own class, which takes tokenizer.json as it is: those of models build parts of it anew."""
    end = tokenizer.name_of(tokenizer.eos_id)
    padding = end if tokenizer.padding_id is None else tokenizer.name_of(tokenizer.padding_id)
    return {
        "bos_token": end,
        "eos_token": end,
        "unk_token": end,
        "pad_token": padding,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config.max_seq_len,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
    }


def _read_card(directory: Path) -> str | None:
    try:
        return (directory / _CARD).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def _with_source(facts: CardFacts, source_card: str | None, out: Path) -> CardFacts:
    """The facts, and what the source's own card can add."""
    found = _LICENCE.match(source_card or "")
    pointer = (
        None if source_card is None else f"See the card of the checkpoint that this was made from, {_SOURCE_CARD}."
    )
    return CardFacts(
        name=facts.name or out.name,
        licence=facts.licence or (found[1] if found else None),
        data=facts.data or pointer,
    )


def _check_written(directory: Path, model: MPT, config: MPTConfig, tokenizer: Tokenizer) -> None:
    """Read everything back from the disk, and compare it bit for bit."""
    state = model.state_dict()
    for name, tensor in read_tensors(directory):
        held = state.pop(name, None)
        if held is None or not torch.equal(held.cpu().view(torch.uint8), tensor.view(torch.uint8)):
            raise CheckpointError(f"{name} was read back from {directory} as something else; check the disk")
    again = load_config(directory)
    is_same = replace(again, extra={}) == replace(config, extra={})
    if state or not is_same or load_tokenizer(directory, again).fingerprint != tokenizer.fingerprint:
        raise CheckpointError(f"what was read back from {directory} differs from what was written; check the disk")


def _push(directory: Path, hub_id: str) -> str:
    try:
        huggingface_hub.create_repo(hub_id, private=True, exist_ok=True)
        huggingface_hub.upload_folder(repo_id=hub_id, folder_path=directory, commit_message="Model from epilogue")
    except Exception as error:  # HTTP clients have exception trees of their own
        raise CheckpointError(
            f"{directory} is written, and the hub did not take it as {hub_id} ({reason(error)}); log in with "
            f"`hf auth login` and push again"
        ) from error
    return f"https://huggingface.co/{hub_id}"
