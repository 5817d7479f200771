"""The MPT architecture: configuration, slopes, cache and the model itself."""

from epilogue.model.alibi import alibi_slopes
from epilogue.model.config import NAMED_SIZES, AttentionConfig, MPTConfig
from epilogue.model.config_reading import config_from_dict, config_to_dict
from epilogue.model.costs import flops_per_token, kv_bytes_per_token, num_parameters
from epilogue.model.kv_cache import KVCache
from epilogue.model.mpt import MPT

__all__ = [
    "MPT",
    "NAMED_SIZES",
    "AttentionConfig",
    "KVCache",
    "MPTConfig",
    "alibi_slopes",
    "config_from_dict",
    "config_to_dict",
    "flops_per_token",
    "kv_bytes_per_token",
    "num_parameters",
]
