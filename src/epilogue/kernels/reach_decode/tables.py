"""What decode of one layer reads and brings up to date, and what it tells."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


@dataclass(frozen=True)
class ScoreBounds:
    """What any query of the layer can give a key, and where each page's largest is kept."""

    root_HDD: Tensor
    """fp32: |root k| is a head's bound but for the next three."""
    offset_HD: Tensor
    """fp32: |offset.k| is added."""
    error_H: Tensor
    """fp32: error * |k| is added."""
    clip: float
    """clip * sum |k_i| is a bound as well; infinite if there is none."""
    scores_HP: Tensor
    """fp32, of every page the largest bound: changed by the call."""


@dataclass(frozen=True)
class LayerTable:
    """One sequence's pages of one layer; all of it has as many columns as the text has pages, or more."""

    ids_KP: Tensor
    """int64: the pages in token order, -1 where one was evicted. Those of the new tokens must be there."""
    norms_KP: Tensor
    """fp32: no key of a page has a larger norm. Changed by the call."""
    num_tokens: int
    """Tokens before the new ones."""
    bounds: ScoreBounds | None = None


class Decoded(NamedTuple):
    """What a call gives."""

    out_THD: Tensor
    """In the dtype of the queries."""
    first_page_H: Tensor
    """int64: the first page that each head looked at."""
    omitted_mass_H: Tensor
    """fp64: no query of the head gives more than this share of its probability to what was not looked at."""
