"""Order of samples: the same whoever asks."""

from itertools import islice

import pytest

from latte_fast.data import GlobalSampler


def taken(count: int, *args: int, **kwargs: int | bool) -> list[tuple[int, int]]:
    return [(epoch, item) for epoch, item, _ in islice(GlobalSampler(*args, **kwargs), count)]


@pytest.mark.parametrize("length", [1, 5, 24, 101])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_laid_end_to_end_are_the_one_process_batch(length: int, ranks: int) -> None:
    batch, batches = 8, 7
    whole = taken(batch * batches, length, batch, 3)
    local = batch // ranks
    parts = [taken(local * batches, length, batch, 3, rank=r, ranks=ranks) for r in range(ranks)]
    joined = [pair for k in range(batches) for part in parts for pair in part[k * local : (k + 1) * local]]
    assert joined == whole


def test_each_epoch_is_another_permutation() -> None:
    pairs = taken(3 * 50, 50, 7, 0)
    epochs = [[i for e, i in pairs if e == epoch] for epoch in range(3)]
    assert all(sorted(order) == list(range(50)) for order in epochs)
    assert epochs[0] != epochs[1] != epochs[2] and epochs[0] != list(range(50))
    assert taken(50, 50, 7, 1) != pairs[:50]


@pytest.mark.parametrize("start", [0, 8, 40, 408])
def test_start_resumes_in_mid_epoch(start: int) -> None:
    whole = taken(start + 64, 50, 8, 5)
    assert taken(64, 50, 8, 5, start=start) == whole[start:]
    second = taken(32, 50, 8, 5, rank=1, ranks=2, start=start)
    assert second[:4] == whole[start + 4 : start + 8]


def test_a_run_ends_with_its_last_sample() -> None:
    """Ranks' parts laid end to end are the batch of one process, numbered through."""
    alone = [key.number for key in GlobalSampler(100, 8, 0, start=16, end=40)]
    assert alone == list(range(16, 40))
    parts = [[key.number for key in GlobalSampler(100, 8, 0, rank, 4, 16, end=40)] for rank in range(4)]
    assert [n for step in range(3) for part in parts for n in part[2 * step : 2 * step + 2]] == alone


def test_without_shuffle_the_order_is_the_datasets() -> None:
    assert taken(5, 3, 2, 0, shuffle=False) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((0, 8, 0), "length must be at least 1"),
        ((9, 6, 0, 0, 4), "batch must be a positive multiple of 4 ranks, got 6"),
        ((9, 0, 0), "batch must be a positive multiple of 1 ranks, got 0"),
        ((9, 8, 0, 4, 4), "rank must be"),
        ((9, 8, 0, -1, 4), "rank must be"),
        ((9, 8, 0, 0, 0), "rank must be"),
        ((9, 8, 0, 0, 1, -8), "start and seed must not be negative, got -8 and 0"),
        ((9, 8, -1), "seed"),
    ],
)
def test_bad_arguments(args: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GlobalSampler(*args)
