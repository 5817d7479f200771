"""The MPT architecture: configuration, slopes, cache and the model itself."""

from epilogue.kernels.quant_linear import QuantWeight, dense, pack_codes, pack_words, unpack_codes, unpack_words
from epilogue.model.alibi import alibi_slopes
from epilogue.model.config import NAMED_SIZES, AttentionConfig, MPTConfig
from epilogue.model.config_reading import config_from_dict, config_to_dict
from epilogue.model.costs import flops_per_token, kv_bytes_per_token, num_parameters, weight_bytes
from epilogue.model.eviction import EvictionBounds, evictable_pages
from epilogue.model.kv_cache import KVCache, Reads, Segment
from epilogue.model.linear import QUANTISED_LAYERS, QuantLinear
from epilogue.model.mpt import MPT
from epilogue.model.page_pool import PagePool, PageTable, page_bytes
from epilogue.model.quantization import KOBOLD_KEYS, Layout, Quantization
from epilogue.model.weight_bounds import eviction_bounds

__all__ = [
    "KOBOLD_KEYS",
    "MPT",
    "NAMED_SIZES",
    "QUANTISED_LAYERS",
    "AttentionConfig",
    "EvictionBounds",
    "KVCache",
    "Layout",
    "MPTConfig",
    "PagePool",
    "PageTable",
    "QuantLinear",
    "QuantWeight",
    "Quantization",
    "Reads",
    "Segment",
    "alibi_slopes",
    "config_from_dict",
    "config_to_dict",
    "dense",
    "evictable_pages",
    "eviction_bounds",
    "flops_per_token",
    "kv_bytes_per_token",
    "num_parameters",
    "pack_codes",
    "pack_words",
    "page_bytes",
    "unpack_codes",
    "unpack_words",
    "weight_bytes",
]
