"""The cache holds what was appended, in memory it took once."""

import pytest
import torch

from epilogue.model import NAMED_SIZES, AttentionConfig, KVCache, MPTConfig

CONFIG = MPTConfig(
    d_model=24,
    n_heads=6,
    n_layers=2,
    attn_config=AttentionConfig(attn_type="grouped_query_attention", kv_n_heads=2),
)


def keys_and_values(num_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(1, num_tokens, 2, 4), torch.randn(1, num_tokens, 2, 4)


def test_appended_tokens_come_back_in_order() -> None:
    cache = KVCache(CONFIG, capacity_tokens=10)
    first, second = keys_and_values(3), keys_and_values(4)
    for layer in range(2):
        cache.append(layer, *first)
    cache.advance(3)
    for layer in range(2):
        k, v = cache.append(layer, *second)
        assert torch.equal(k, torch.cat([first[0], second[0]], dim=1))
        assert torch.equal(v, torch.cat([first[1], second[1]], dim=1))
    cache.advance(4)
    assert cache.length == 7


def test_appending_moves_nothing() -> None:
    cache = KVCache(CONFIG, capacity_tokens=10)
    addresses = set()
    for _ in range(5):
        k, v = cache.append(1, *keys_and_values(2))
        cache.advance(2)
        addresses.add((k.data_ptr(), v.data_ptr()))
    assert len(addresses) == 1


def test_truncated_tokens_are_written_over() -> None:
    cache = KVCache(CONFIG, capacity_tokens=6)
    first, second = keys_and_values(5), keys_and_values(3)
    cache.append(0, *first)
    cache.advance(5)
    cache.truncate(2)
    k, _ = cache.append(0, *second)
    assert torch.equal(k, torch.cat([first[0][:, :2], second[0]], dim=1))


def test_no_room_is_said_and_nothing_is_written() -> None:
    cache = KVCache(CONFIG, capacity_tokens=4)
    first = keys_and_values(3)
    cache.append(0, *first)
    cache.advance(3)
    with pytest.raises(ValueError, match="5 tokens do not fit a cache of 4"):
        cache.append(0, *keys_and_values(2))
    k, _ = cache.append(0, *keys_and_values(1))
    assert torch.equal(k[:, :3], first[0])


@pytest.mark.parametrize("length", [-1, 1])
def test_cannot_keep_what_is_not_there(length: int) -> None:
    with pytest.raises(ValueError, match=f"cannot keep {length} of 0 tokens"):
        KVCache(CONFIG, capacity_tokens=4).truncate(length)


def test_storywriter_at_its_length_takes_32_gib() -> None:
    config = NAMED_SIZES["mpt-7b-storywriter"]
    cache = KVCache(config, capacity_tokens=65536, dtype=torch.bfloat16, device="meta")
    assert cache.num_bytes == 32 * 2**30
