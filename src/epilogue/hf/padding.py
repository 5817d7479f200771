"""Attention masks of batches, as the attention op wants them: where each sequence begins."""

import torch
from torch import Tensor


def document_starts(mask_BS: Tensor | None, *, num_new: int, num_before: int) -> Tensor | None:
    """The first position that each new token sees, from a mask that hides padding.

    Padding on the right needs nothing: real tokens never look ahead, and what padding itself computes is not used.

    Args:
        mask_BS: ones for tokens, zeros for padding; the tokens in the cache included.
        num_new: T, the tokens of this call, the last ones of the mask.
        num_before: tokens in the cache.

    Returns:
        document_start_BT, int64, on the mask's device; None if all sequences begin at 0. Padding sees itself alone.

    Raises:
        ValueError: another shape (static caches make masks of four dimensions), or padding between tokens.
    """
    if mask_BS is None:
        return None
    if mask_BS.ndim == 4:
        raise ValueError(
            "an attention_mask of four dimensions, as static caches come with, is not run here; use DynamicCache"
        )
    if mask_BS.ndim != 2 or mask_BS.shape[1] != num_before + num_new:
        raise ValueError(
            f"attention_mask must be [batch, {num_before + num_new}], a number for every token in the cache and every "
            f"new one, got {list(mask_BS.shape)}"
        )
    seen_BS = mask_BS != 0
    if bool(seen_BS.all()):
        return None
    place_S = torch.arange(mask_BS.shape[1], device=mask_BS.device)
    first_B = torch.where(seen_BS, place_S, len(place_S)).amin(dim=1)
    last_B = torch.where(seen_BS, place_S, -1).amax(dim=1)
    if bool((seen_BS.sum(dim=1) != (last_B - first_B + 1).clamp(min=0)).any()):
        raise ValueError(
            "attention_mask hides tokens between others; only padding before or after a text is run here, and only "
            "padding before it (padding_side='left') where text is generated"
        )
    return torch.minimum(first_B[:, None], place_S[num_before:])
