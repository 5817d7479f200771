"""Every window lies inside one book, the order is a function of the seed, and starting anywhere is exact."""

from collections import Counter
from itertools import islice

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.conftest import MakeShards
from epilogue.data import WindowLoader
from epilogue.errors import ShardError

Rows = list[list[int]]


def rows(loader: WindowLoader, num_batches: int, *, start: int = 0) -> Rows:
    """Each batch's ids, the targets' last one included, as one list of numbers a batch."""
    found = []
    for ids_BT, targets_BT in islice(loader.batches(start=start), num_batches):
        assert ids_BT.dtype == targets_BT.dtype == torch.int64
        assert ids_BT.shape == targets_BT.shape == (loader.batch, loader.num_tokens)
        assert torch.equal(ids_BT[:, 1:], targets_BT[:, :-1])
        found.append(torch.cat([ids_BT, targets_BT[:, -1:]], 1).flatten().tolist())
    return found


lengths = st.lists(st.integers(2, 60), min_size=1, max_size=6)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths, st.integers(1, 20), st.integers(1, 4), st.integers(0, 30), st.integers(0, 2**32 - 1))
def test_any_start_gives_what_would_have_come(
    make_shards: MakeShards, lengths: list[int], num_tokens: int, batch: int, start: int, seed: int
) -> None:
    try:
        loader = WindowLoader(make_shards(lengths), num_tokens=num_tokens, batch=batch, seed=seed)
    except ShardError:
        return
    assert rows(loader, 5, start=start) == rows(loader, start + 5)[start:]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths, st.integers(1, 20), st.integers(0, 5))
def test_an_epoch_predicts_every_token_of_a_long_enough_book_once_or_twice(
    make_shards: MakeShards, lengths: list[int], num_tokens: int, epoch: int
) -> None:
    shards = make_shards(lengths)
    if max(lengths) <= num_tokens:
        with pytest.raises(ShardError, match=f"the longest has {max(lengths)}"):
            WindowLoader(shards, num_tokens=num_tokens, batch=1)
        return
    loader = WindowLoader(shards, num_tokens=num_tokens, batch=1, seed=3)
    times: Counter[tuple[int, int]] = Counter()
    for window in rows(loader, loader.num_windows, start=epoch * loader.num_windows):
        book, first = divmod(window[0], 1000)
        last = lengths[book] - 1
        whole = [book * 1000 + place if place < last else 0 for place in range(last + 1)]
        assert window == whole[first : first + num_tokens + 1]
        times.update((book, place) for place in range(first + 1, first + num_tokens + 1))
    for book, length in enumerate(lengths):
        per_place = [times[book, place] for place in range(1, length)]
        assert set(per_place) <= ({1, 2} if length > num_tokens else {0})
        assert sum(per_place) < length - 1 + num_tokens
        assert not sum(per_place) % num_tokens


def test_epochs_are_shuffled_and_cut_differently(make_shards: MakeShards) -> None:
    loader = WindowLoader(make_shards([95, 61]), num_tokens=10, batch=1)
    first, second = rows(loader, 16), rows(loader, 16, start=16)
    assert first != sorted(first)
    assert sorted(first) != sorted(second)


def test_a_seed_is_an_order(make_shards: MakeShards) -> None:
    shards = make_shards([90, 60, 33])
    orders = [rows(WindowLoader(shards, num_tokens=8, batch=2, seed=seed), 12) for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]


def test_windows_that_do_not_fill_a_batch_are_dropped(make_shards: MakeShards) -> None:
    loader = WindowLoader(make_shards([71]), num_tokens=10, batch=4)
    assert (loader.num_windows, loader.batches_per_epoch) == (7, 1)
    for [epoch] in (rows(loader, 1, start=start) for start in range(5)):
        assert len({epoch[i * 11] for i in range(4)}) == 4


def test_a_batch_larger_than_an_epoch_is_refused_at_once(make_shards: MakeShards) -> None:
    with pytest.raises(ShardError, match=r"has 7 windows of 10 tokens, fewer than a batch of 8; choose"):
        WindowLoader(make_shards([71]), num_tokens=10, batch=8)


def test_shards_without_a_book_are_refused(make_shards: MakeShards) -> None:
    with pytest.raises(ShardError, match="the longest has 0"):
        WindowLoader(make_shards([]), num_tokens=10, batch=1)


@pytest.mark.parametrize("wrong", [{"num_tokens": 0}, {"batch": 0}, {"seed": -1}])
def test_wrong_calls(make_shards: MakeShards, wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least"):
        WindowLoader(make_shards([71]), **({"num_tokens": 10, "batch": 1} | wrong))


def test_far_in_only_one_epoch_is_laid_out(make_shards: MakeShards, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = WindowLoader(make_shards([90]), num_tokens=10, batch=1)
    epochs: list[int] = []
    real = WindowLoader._epoch

    def counted(self: WindowLoader, epoch: int) -> object:
        epochs.append(epoch)
        return real(self, epoch)

    monkeypatch.setattr(WindowLoader, "_epoch", counted)
    rows(loader, 1, start=1_000_000 * loader.batches_per_epoch)
    assert epochs == [1_000_000]
