"""How heads are dealt out to the processes of a context group."""

from collections import Counter

from hypothesis import assume, given
from hypothesis import strategies as st

from epilogue.model.alibi import alibi_slopes
from epilogue.train.context import _pairs, share_heads

TOKENS = 65536


@st.composite
def heads(draw: st.DrawFn) -> tuple[int, int, int, float]:
    """Heads, heads of keys and values, processes, the flattest slope's exponent."""
    processes = draw(st.sampled_from([1, 2, 3, 4, 8]))
    kv_heads = draw(st.integers(1, 12))
    groups = draw(st.integers(1, 4))
    assume(kv_heads * groups % processes == 0)
    return kv_heads * groups, kv_heads, processes, draw(st.sampled_from([0.0, 8.0, 16.0]))


def load(slopes: list[float], heads_of_one: list[int]) -> float:
    return sum(_pairs(slopes[head], TOKENS) for head in heads_of_one)


@given(heads())
def test_every_head_is_computed_once_with_its_own_keys(sizes: tuple[int, int, int, float]) -> None:
    num_heads, kv_heads, processes, bias_max = sizes
    slopes = alibi_slopes(num_heads, bias_max).tolist()
    shares = share_heads(slopes, kv_n_heads=kv_heads, num_processes=processes, num_tokens=TOKENS)
    assert Counter(head for queries in shares.queries for head in queries) == Counter(range(num_heads))
    for queries, keys in zip(shares.queries, shares.keys, strict=True):
        assert len(queries) == num_heads // processes
        group = len(queries) // len(keys)
        of_query = [keys[place // group] for place in range(len(queries))]
        assert of_query == [head // (num_heads // kv_heads) for head in queries]


@given(heads())
def test_the_work_is_spread_no_worse_than_in_order(sizes: tuple[int, int, int, float]) -> None:
    num_heads, kv_heads, processes, bias_max = sizes
    slopes = alibi_slopes(num_heads, bias_max).tolist()
    shares = share_heads(slopes, kv_n_heads=kv_heads, num_processes=processes, num_tokens=TOKENS)
    each = num_heads // processes
    in_order = [list(range(p * each, (p + 1) * each)) for p in range(processes)]
    most = max(load(slopes, queries) for queries in in_order)
    assert max(load(slopes, queries) for queries in shares.queries) <= most * (1 + 1e-9)


def test_storywriters_heads_are_even_on_eight_processes() -> None:
    slopes = alibi_slopes(32, 16).tolist()
    shares = share_heads(slopes, kv_n_heads=32, num_processes=8, num_tokens=TOKENS)
    loads = [load(slopes, queries) for queries in shares.queries]
    in_order = load(slopes, list(range(28, 32))) / (sum(loads) / 8)
    assert in_order > 1.8
    assert max(loads) < 1.08 * sum(loads) / 8
