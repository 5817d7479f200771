"""Decode through the C++ extension: the hook of ``KVCache.attend`` into ``kernels.reach_decode``."""

from torch import Tensor

from epilogue.kernels.reach_decode import Decoded, LayerTable, ScoreBounds, reach_decode
from epilogue.model.eviction import EvictionBounds
from epilogue.model.page_pool import PagePool, PageTable


def decode_natively(
    pool: PagePool,
    table: PageTable,
    layer: int,
    qkv: tuple[Tensor, Tensor, Tensor],
    slopes_H: Tensor,
    *,
    scale: float,
    epsilon: float,
    bounds: EvictionBounds | None,
) -> Decoded:
    """Take in one sequence's few new tokens and attend from them, in one call; ``qkv`` are q_THD, k_TKD and v_TKD."""
    terms = None if bounds is None else ScoreBounds(
        bounds.root_LHDD[layer], bounds.offset_LHD[layer], bounds.error_LH[layer], bounds.clip, table.scores_LHP[layer]
    )  # fmt: skip
    layer_table = LayerTable(table.ids_LKP[layer], table.norms_LKP[layer], table.num_tokens, terms)
    return reach_decode(*qkv, pool.keys, pool.values, layer_table, slopes_H, scale=scale, epsilon=epsilon)
