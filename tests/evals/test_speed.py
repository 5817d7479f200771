"""Speed: the arithmetic by hand, the growth of made-up times, and what a measurement leaves behind."""

from itertools import count
from typing import Any

import pytest
import torch

from epilogue.engine import Engine
from epilogue.errors import CapacityError
from epilogue.evals import Ceilings, SpeedRow, growth, machine_facts, measure_ceilings, measure_speed
from epilogue.evals.speed import token_bytes
from epilogue.model import MPT, AttentionConfig, MPTConfig, read_flops

CEILINGS = Ceilings(flop_per_s=1e9, dtype="float32", read_bytes_per_s=1e9)


def make_model(*, tied: bool = True, **changes: Any) -> MPT:
    sizes: dict[str, Any] = {"d_model": 16, "n_heads": 4, "n_layers": 2, "vocab_size": 50, "max_seq_len": 64}
    attention = AttentionConfig(alibi=True, attn_type="grouped_query_attention", kv_n_heads=2)
    config = MPTConfig(**(sizes | changes), no_bias=True, tie_word_embeddings=tied, attn_config=attention)
    model = MPT(config)
    model.init_weights(std=0.3)
    return model


def make_ids(num_tokens: int) -> list[int]:
    return torch.randint(50, (num_tokens,), generator=torch.Generator().manual_seed(1)).tolist()


def make_row(num_tokens: int, **changes: Any) -> SpeedRow:
    values: dict[str, Any] = {
        "num_tokens": num_tokens, "read_s": 1.0, "stretch_tokens_per_s": 1.0, "first_token_s": 1.0, "token_s": 1.0,
        "dense_flops": 0, "visited_flops": 0, "share_visited": 1.0, "shares_visited": (1.0,), "shares_held": (1.0,),
        "omitted_mass": 0.0, "token_bytes": 0.0, "reach_tokens": ((1,),), "bytes_held": 0, "bytes_dense_bf16": 0,
    }  # fmt: skip
    return SpeedRow(**(values | changes))


@pytest.mark.parametrize("epsilon", [0.0, 1e-6])
def test_rows_are_those_of_one_reading(epsilon: float) -> None:
    model, ids, lengths = make_model(), make_ids(1300), [1, 63, 1000, 1290]
    rows = list(measure_speed(Engine(model, epsilon=epsilon), ids, lengths, new_tokens=3))
    assert [row.num_tokens for row in rows] == lengths
    assert [row.read_s for row in rows] == sorted(row.read_s for row in rows)
    for number, row in enumerate(rows):
        engine = Engine(model, epsilon=epsilon)
        text = engine.open_book(ids[: row.num_tokens])
        stats = engine.stats()
        assert row.bytes_dense_bf16 == stats.bytes_dense_bf16
        # Of two layers the last one looked back from the last token of this length and of every shorter one.
        pairs = row.num_tokens * (row.num_tokens + 1) // 2 + sum(lengths[: number + 1])
        heads = model.config.n_heads
        assert row.dense_flops == read_flops(model.config, row.num_tokens, visited_pairs=heads * pairs)
        assert row.dense_flops >= row.visited_flops
        if epsilon == 0:
            assert row.bytes_held == stats.bytes_held
            assert row.dense_flops == row.visited_flops
            assert row.share_visited == 1
            assert row.shares_held == (1, 1)
        assert row.first_token_s > row.read_s
        engine.close(text)


def test_a_measurement_leaves_nothing_behind() -> None:
    engine = Engine(make_model())
    free = engine.pages.num_free
    rows = measure_speed(engine, make_ids(300), [100, 300], new_tokens=2)
    next(rows)
    rows.close()  # as after Ctrl-C
    assert engine.pages.num_free == free
    list(measure_speed(engine, make_ids(300), [100, 300], new_tokens=2))
    assert engine.pages.num_free == free


def test_times_are_the_clocks() -> None:
    """A clock that ticks once at every look: a read is one tick, a token one."""
    ticks = count()
    rows = list(measure_speed(Engine(make_model()), make_ids(30), [10, 30], now_s=lambda: float(next(ticks))))
    assert [row.read_s for row in rows] == [1, 2]
    assert [row.tokens_per_s for row in rows] == [10, 15]
    assert [row.stretch_tokens_per_s for row in rows] == [10, 20]
    assert [row.first_token_s for row in rows] == [2, 3]
    assert {row.token_s for row in rows} == {1}


def test_progress_counts_over_all_lengths() -> None:
    seen: list[tuple[int, int]] = []
    engine = Engine(make_model(), chunk_tokens=8)
    list(measure_speed(engine, make_ids(30), [10, 30], new_tokens=1, on_progress=lambda *told: seen.append(told)))
    assert seen == [(8, 30), (10, 30), (18, 30), (26, 30), (30, 30)]


def test_without_reach_a_new_token_sees_the_whole_text() -> None:
    (row,) = measure_speed(Engine(make_model(), epsilon=0), make_ids(200), [200], new_tokens=3)
    assert row.reach_tokens == ((204,) * 4,) * 2  # 3 and 2 to warm up; the last one goes through nothing


def test_reach_is_told_by_layer_and_head() -> None:
    """What the engine counted for a token is the sum of what is told."""
    model, ids = make_model(), make_ids(1500)
    (row,) = measure_speed(Engine(model), ids, [1500], new_tokens=1)
    assert [len(layer) for layer in row.reach_tokens] == [4, 4]
    steepest, flattest = row.reach_tokens[0][0], row.reach_tokens[0][-1]
    assert steepest < flattest <= 1502
    assert row.share_reaching(0) == 1
    assert row.share_reaching(1502) == 0
    assert 0 < row.share_reaching(steepest) < 1


@pytest.mark.parametrize("tied", [True, False])
def test_bytes_of_a_token_by_hand(tied: bool) -> None:
    """Blocks, norms, the head once, a lookup not at all; heads that share keys read the longer reach once."""
    engine = Engine(make_model(tied=tied), num_pages=8)
    block = 16 * (16 + 2 * 2 * 4) + 16 * 16 + 2 * 16 * 64 + 2 * 16
    weights = 4 * (2 * block + 16 + 50 * 16)
    keys = (7 + 9) + (5 + 128)
    assert token_bytes(engine, [[7, 3, 2, 9], [5, 5, 128, 1]]) == weights + keys * 2 * 4 * 4


def test_flops_of_a_reading_by_hand() -> None:
    """The last layer's attention and feed-forward for the last token alone."""
    config = make_model().config
    qkv, rest = 2 * 16 * 32, 2 * (16 * 16 + 2 * 16 * 64)
    linear = 3 * (qkv + rest) + 3 * qkv + rest
    pairs = 4 * (1 + 2 + 3) + 4 * 3
    assert read_flops(config, 3) == linear + pairs * 4 * 4 + 2 * 16 * 50
    assert read_flops(config, 3, visited_pairs=5) == linear + 5 * 4 * 4 + 2 * 16 * 50


def test_shares_of_the_ceilings() -> None:
    row = make_row(8, read_s=2.0, token_s=0.5, dense_flops=4 * 10**9, visited_flops=10**9, token_bytes=1e8)
    assert (row.mfu(CEILINGS), row.visited_mfu(CEILINGS), row.mbu(CEILINGS)) == (2.0, 0.5, 0.2)


@pytest.mark.parametrize("power", [1.0, 1.37, 2.0])
def test_growth_of_made_up_times(power: float) -> None:
    lengths = [2048, 8192, 16384, 65536, 83968]
    rows = [
        make_row(n, read_s=3e-5 * n**power if 8192 <= n <= 65536 else 99.0, token_s=1e-3 * n, reach_tokens=((n, 128),))
        for n in lengths
    ]
    found = growth(rows)
    assert found is not None
    assert (found.from_tokens, found.to_tokens) == (8192, 65536)
    assert found.read_exponent == pytest.approx(power)
    assert found.token_ratio == pytest.approx(8)
    assert found.visited_ratio == pytest.approx((65536 + 128) / (8192 + 128))
    assert found.share_reaching == 0.5


def test_growth_of_other_lengths_is_from_the_first_to_the_last() -> None:
    found = growth([make_row(10, read_s=1.0), make_row(8192, read_s=2.0)])
    assert found is not None
    assert (found.from_tokens, found.to_tokens) == (10, 8192)
    assert growth([make_row(10)]) is None
    assert growth([]) is None


@pytest.mark.parametrize(
    ("lengths", "new_tokens", "said"),
    [
        ([], 1, "must rise"),
        ([0, 5], 1, "must rise"),
        ([5, 5], 1, "must rise"),
        ([5, 31], 1, "30 tokens cannot be read to 31"),
        ([5], 0, "new_tokens must be at least 1"),
    ],
)
def test_wrong_calls(lengths: list[int], new_tokens: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        next(measure_speed(Engine(make_model()), make_ids(30), lengths, new_tokens=new_tokens))


def test_what_does_not_fit_is_refused_before_reading() -> None:
    engine = Engine(make_model(), num_pages=8, undo_tokens=0)
    read: list[int] = []
    with pytest.raises(CapacityError, match="tokens would fit"):
        next(measure_speed(engine, make_ids(5000), [10, 5000], on_progress=lambda done, total: read.append(done)))
    assert not read


def test_ceilings_are_measured_in_the_dtype_asked_for() -> None:
    cpu = torch.device("cpu")
    ceilings = measure_ceilings(cpu, torch.float32)
    assert ceilings.flop_per_s > 1e8
    assert ceilings.read_bytes_per_s > 1e8
    facts = machine_facts(cpu, ceilings)
    assert facts["threads"] == torch.get_num_threads()
    assert facts["dtype"] == "float32"
