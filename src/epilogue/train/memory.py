"""What a recipe says about memory, as the model takes it."""

from epilogue.model import Recompute
from epilogue.train.recipe_parts import MemoryRecipe


def recompute_of(memory: MemoryRecipe) -> Recompute | None:
    """How blocks are made again on the way back; None where they keep everything."""
    if memory.checkpointing == "none":
        return None
    return Recompute(keeps_attention=memory.checkpointing == "selective", tile_tokens=memory.mlp_tile_tokens)
