"""Every token is dealt out once an epoch, the order is a function of the seed, and any start, rank or worker fits."""

import pickle
from collections import Counter
from itertools import islice

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.conftest import MakeShards
from epilogue.data import Batch, WindowLoader
from epilogue.errors import ShardError


def assert_same(one: Batch, other: Batch) -> None:
    for name, value in vars(one).items():
        there = getattr(other, name)
        assert torch.equal(value, there) if isinstance(value, torch.Tensor) else value == there, name


def starts_of(batch: Batch) -> torch.Tensor:
    return torch.zeros_like(batch.ids_BT) if batch.document_start_BT is None else batch.document_start_BT


def joined(parts: list[Batch]) -> Batch:
    starts = torch.cat([starts_of(part) for part in parts])
    return Batch(
        ids_BT=torch.cat([part.ids_BT for part in parts]),
        targets_BT=torch.cat([part.targets_BT for part in parts]),
        document_start_BT=starts if starts.any() else None,
        num_targets=parts[0].num_targets,
        num_pairs=parts[0].num_pairs,
    )


any_shards = settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
lengths = st.lists(st.integers(2, 60), min_size=1, max_size=6)
seeds = st.integers(0, 2**32 - 1)


@any_shards
@given(lengths, st.integers(1, 20), st.integers(1, 4), st.integers(0, 30), seeds)
def test_any_start_gives_what_would_have_come(
    make_shards: MakeShards, lengths: list[int], num_tokens: int, batch: int, start: int, seed: int
) -> None:
    loader = WindowLoader(make_shards(lengths), num_tokens=num_tokens, batch=batch, seed=seed)
    whole = list(islice(loader.batches(), start + 3))
    for resumed, uninterrupted in zip(islice(loader.batches(start=start), 3), whole[start:], strict=True):
        assert_same(resumed, uninterrupted)


@any_shards
@given(lengths, st.integers(1, 20), st.integers(1, 3), st.integers(1, 4), st.integers(0, 9), seeds)
def test_ranks_together_are_one_process(
    make_shards: MakeShards, lengths: list[int], num_tokens: int, rows: int, num_ranks: int, index: int, seed: int
) -> None:
    shards = make_shards(lengths)
    sizes = {"num_tokens": num_tokens, "batch": rows * num_ranks, "seed": seed}
    parts = [WindowLoader(shards, rank=rank, num_ranks=num_ranks, **sizes)[index] for rank in range(num_ranks)]
    assert {len(part.ids_BT) for part in parts} == {rows}
    assert_same(joined(parts), WindowLoader(shards, **sizes)[index])


@any_shards
@given(lengths, st.integers(1, 20), st.integers(0, 4), seeds)
def test_an_epoch_predicts_every_token_once_from_what_stands_before_it(
    make_shards: MakeShards, lengths: list[int], num_tokens: int, epoch: int, seed: int
) -> None:
    shards = make_shards(lengths)
    eos = shards.tokenizer.eos_id
    loader = WindowLoader(shards, num_tokens=num_tokens, batch=1, seed=seed)
    times: Counter[int] = Counter()
    for index in range(epoch * loader.num_rows, (epoch + 1) * loader.num_rows):
        batch = loader[index]
        predicted, num_pairs = batch.targets_BT[0] >= 0, 0
        assert batch.num_targets == int(predicted.sum())
        ids, targets, starts = batch.ids_BT[0].tolist(), batch.targets_BT[0].tolist(), starts_of(batch)[0].tolist()
        for place in range(batch.num_targets):
            num_pairs += place - starts[place] + 1
            before = ids[starts[place] : place + 1]
            assert before == list(range(before[0], before[0] + len(before)))  # one book's tokens, none left out
            ends = before[-1] % 1000 == lengths[before[-1] // 1000] - 1
            assert targets[place] == (eos if ends else before[-1] + 1)
            times[before[-1] // 1000 * 1000 + before[-1] % 1000 + 1] += 1
        assert num_pairs == batch.num_pairs
        assert set(targets[batch.num_targets :]) <= {-100}
    assert times == Counter({b * 1000 + i: 1 for b, n in enumerate(lengths) for i in range(2, n + 1)})


@any_shards
@given(lengths, st.integers(1, 20), st.integers(1, 6))
def test_batches_run_over_the_ends_of_epochs(
    make_shards: MakeShards, lengths: list[int], num_tokens: int, batch: int
) -> None:
    shards = make_shards(lengths)
    one = WindowLoader(shards, num_tokens=num_tokens, batch=1, seed=7)
    many = WindowLoader(shards, num_tokens=num_tokens, batch=batch, seed=7)
    for index in range(one.num_rows // batch + 2):
        rows = torch.cat([one[index * batch + i].ids_BT for i in range(batch)])
        assert torch.equal(many[index].ids_BT, rows)


def test_epochs_are_shuffled_and_cut_differently(make_shards: MakeShards) -> None:
    loader = WindowLoader(make_shards([96, 66]), num_tokens=10, batch=1)
    epochs = [[loader[e * loader.num_rows + i].ids_BT[0, 0].item() for i in range(loader.num_rows)] for e in range(4)]
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert len({tuple(sorted(epoch)) for epoch in epochs}) > 1
    assert epochs[0] != sorted(epochs[0])


def test_a_seed_is_an_order(make_shards: MakeShards) -> None:
    shards = make_shards([90, 60, 33])
    orders = [WindowLoader(shards, num_tokens=8, batch=20, seed=seed)[0].ids_BT.tolist() for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]


def test_micro_batches_are_the_batch(make_shards: MakeShards) -> None:
    batch = WindowLoader(make_shards([95, 20, 3, 4]), num_tokens=10, batch=11)[0]
    parts = batch.split(3)
    assert [len(part.ids_BT) for part in parts] == [3, 3, 3, 2]
    assert any(part.document_start_BT is None for part in batch.split(1))
    assert_same(joined(parts), batch)


def test_a_row_without_seams_says_so(make_shards: MakeShards) -> None:
    assert WindowLoader(make_shards([41]), num_tokens=10, batch=4)[0].document_start_BT is None


def test_far_in_is_as_near_as_the_beginning(make_shards: MakeShards) -> None:
    loader = WindowLoader(make_shards([90]), num_tokens=10, batch=2)
    assert loader[10**12].ids_BT.shape == (2, 10)


def test_a_copy_in_another_process_deals_the_same(make_shards: MakeShards) -> None:
    loader = WindowLoader(make_shards([90, 31]), num_tokens=10, batch=3, seed=2)
    assert_same(pickle.loads(pickle.dumps(loader))[5], loader[5])


def test_workers_of_torch_keep_the_order(make_shards: MakeShards) -> None:
    loader = WindowLoader(make_shards([90, 31]), num_tokens=10, batch=3, seed=2)
    workers = torch.utils.data.DataLoader(
        loader, batch_size=None, sampler=range(4, 9), num_workers=2, multiprocessing_context="fork"
    )
    for index, batch in enumerate(workers, start=4):
        assert_same(batch, loader[index])


@pytest.mark.parametrize("lengths", [[], [1, 1]])
def test_shards_without_a_token_to_predict_are_refused(make_shards: MakeShards, lengths: list[int]) -> None:
    with pytest.raises(ShardError, match="has a token to predict; prepare"):
        WindowLoader(make_shards(lengths), num_tokens=10, batch=1)


@pytest.mark.parametrize("wrong", [{"num_tokens": 0}, {"batch": 0}, {"seed": -1}])
def test_wrong_calls(make_shards: MakeShards, wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least"):
        WindowLoader(make_shards([71]), **({"num_tokens": 10, "batch": 1} | wrong))


@pytest.mark.parametrize("wrong", [{"rank": 2}, {"rank": -1}, {"batch": 3}])
def test_ranks_that_do_not_fit(make_shards: MakeShards, wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="cannot have an equal part"):
        WindowLoader(make_shards([71]), **({"num_tokens": 10, "batch": 4, "num_ranks": 2} | wrong))
