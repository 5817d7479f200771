"""The MPT architecture: configuration, slopes, cache and the model itself."""

from epilogue.kernels.quant_linear import QuantWeight, dense, pack_codes, pack_words, unpack_codes, unpack_words
from epilogue.model.adapters import LowRankAdapter, adapters, add_adapters
from epilogue.model.alibi import alibi_slopes
from epilogue.model.blocks import Attention
from epilogue.model.bookmarks import SPACINGS, bookmarks, check_spacings
from epilogue.model.config import NAMED_SIZES, AttentionConfig, MPTConfig
from epilogue.model.config_reading import config_from_dict, config_to_dict
from epilogue.model.costs import flops_per_token, kv_bytes_per_token, num_parameters, read_flops, weight_bytes
from epilogue.model.eviction import EvictionBounds, evictable_from
from epilogue.model.joined_keys import JoinedKeys
from epilogue.model.kv_cache import KVCache, Segment
from epilogue.model.linear import QUANTISED_LAYERS, QuantLinear
from epilogue.model.mpt import MPT, Transformer
from epilogue.model.native_step import NativeStep
from epilogue.model.page_pool import PagePool, PageTable, bytes_per_key, page_bytes
from epilogue.model.placed_table import upload
from epilogue.model.quantization import KOBOLD_KEYS, Layout, Quantization
from epilogue.model.reads import Reads
from epilogue.model.recompute import Recompute
from epilogue.model.token_step import TokenResults, TokenStep, TokenTables, run_tokens
from epilogue.model.weight_bounds import eviction_bounds

__all__ = [
    "KOBOLD_KEYS",
    "MPT",
    "NAMED_SIZES",
    "QUANTISED_LAYERS",
    "SPACINGS",
    "Attention",
    "AttentionConfig",
    "EvictionBounds",
    "JoinedKeys",
    "KVCache",
    "Layout",
    "LowRankAdapter",
    "MPTConfig",
    "NativeStep",
    "PagePool",
    "PageTable",
    "QuantLinear",
    "QuantWeight",
    "Quantization",
    "Reads",
    "Recompute",
    "Segment",
    "TokenResults",
    "TokenStep",
    "TokenTables",
    "Transformer",
    "adapters",
    "add_adapters",
    "alibi_slopes",
    "bookmarks",
    "bytes_per_key",
    "check_spacings",
    "config_from_dict",
    "config_to_dict",
    "dense",
    "evictable_from",
    "eviction_bounds",
    "flops_per_token",
    "kv_bytes_per_token",
    "num_parameters",
    "pack_codes",
    "pack_words",
    "page_bytes",
    "read_flops",
    "run_tokens",
    "unpack_codes",
    "unpack_words",
    "upload",
    "weight_bytes",
]
