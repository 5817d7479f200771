"""The MPT architecture: configuration, slopes, cache and the model itself."""

from epilogue.model.alibi import alibi_slopes
from epilogue.model.config import NAMED_SIZES, AttentionConfig, MPTConfig
from epilogue.model.config_reading import config_from_dict, config_to_dict
from epilogue.model.costs import flops_per_token, kv_bytes_per_token, num_parameters, read_flops
from epilogue.model.eviction import EvictionBounds, evictable_pages
from epilogue.model.kv_cache import KVCache, Segment
from epilogue.model.mpt import MPT
from epilogue.model.page_pool import PagePool, PageTable, bytes_per_key, page_bytes
from epilogue.model.reads import Reads
from epilogue.model.token_step import TokenResults, TokenStep, TokenTables, run_tokens
from epilogue.model.weight_bounds import eviction_bounds

__all__ = [
    "MPT",
    "NAMED_SIZES",
    "AttentionConfig",
    "EvictionBounds",
    "KVCache",
    "MPTConfig",
    "PagePool",
    "PageTable",
    "Reads",
    "Segment",
    "TokenResults",
    "TokenStep",
    "TokenTables",
    "alibi_slopes",
    "bytes_per_key",
    "config_from_dict",
    "config_to_dict",
    "evictable_pages",
    "eviction_bounds",
    "flops_per_token",
    "kv_bytes_per_token",
    "num_parameters",
    "page_bytes",
    "read_flops",
    "run_tokens",
]
