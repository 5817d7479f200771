"""Put a trained checkpoint into the package as its bundled model: bf16 weights, tokenizer, the card beside this file.

python recipes/bundle_model.py runs/epilogue-tiny-long/step-0001100
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch

from epilogue.checkpoint import load_checkpoint, load_tokenizer, save_checkpoint

ROOT = Path(__file__).parents[1]


def main(source: Path) -> None:
    """Convert and save."""
    checkpoint = load_checkpoint(source, dtype=torch.bfloat16)
    tokenizer = load_tokenizer(source, checkpoint.config)
    save_checkpoint(
        ROOT / "src/epilogue/bundled/epilogue-tiny",
        checkpoint.model.state_dict(),
        replace(checkpoint.config, extra={"eos_token_id": tokenizer.eos_id, "bos_token_id": tokenizer.eos_id}),
        dtype=torch.bfloat16,
        tokenizer_file=source / "tokenizer.json",
        card=(ROOT / "recipes/epilogue-tiny-card.md").read_text(encoding="utf-8"),
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
