"""The sample of a pilot, and the projected bill."""

from __future__ import annotations

import random
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_dispatch import Brief, Item
from prefect_dispatch.tasks.pilots.pilot import describe_spread, draw_sample, project_total, size_of
from prefect_dispatch.tasks.work_item import WorkItem

BRIEF = Brief(name="terms", instructions="Read it.")


def work(key: str, value: str = "x") -> WorkItem:
    """Return work on an item."""
    return WorkItem(BRIEF, Item(key=key, value=value), key)


@given(st.lists(st.text("abc./", min_size=1, max_size=6), min_size=2, max_size=40, unique=True), st.data())
def test_a_sample_has_its_size_and_depends_on_no_order(keys: list[str], data: st.DataObject) -> None:
    """Whatever the keys: as many as wanted, all different, and the same in another order."""
    every = [work(key, key) for key in keys]
    count = data.draw(st.integers(1, len(every) - 1))
    sample = draw_sample(every, count)
    assert len({each.fingerprint for each in sample}) == count
    assert draw_sample(data.draw(st.permutations(every)), count) == sample


def test_each_source_is_in_the_sample_and_sizes_are_spread() -> None:
    """One scanned folder of three among a hundred texts is sampled, too; the texts from short to long."""
    every = [work(f"texts/{at}.txt", "x" * at) for at in range(100)] + [work(f"scans/{at}.pdf") for at in range(3)]
    sample = draw_sample(every, 5)
    assert sum(each.item.key.startswith("scans/") for each in sample) == 1
    assert [size_of(each) for each in sample if each.item.key.startswith("texts/")] == [12, 37, 62, 87]


def test_objects_have_a_size() -> None:
    """The size of an object is that of its JSON."""
    assert size_of(WorkItem(BRIEF, Item(key="a", value={"b": 1}), "")) == len('{"b":1}')


@pytest.mark.parametrize("slope", [0.0, 0.001])
def test_the_interval_covers_the_bill_as_often_as_it_says(slope: float) -> None:
    """Of 1,000 jobs whose costs vary around a line over the size, about 95 in 100 have their bill in the interval."""
    chance, covered = random.Random(20), 0
    for _ in range(1000):
        sizes = [chance.randint(100, 2000) for _ in range(200)]
        costs = [0.5 + slope * size + chance.gauss(0, 0.1) for size in sizes]
        picked = chance.sample(range(200), 8)
        rest = [size for at, size in enumerate(sizes) if at not in picked]
        total = project_total([sizes[at] for at in picked], [costs[at] for at in picked], rest)
        assert total.low is not None
        assert total.high is not None
        covered += total.low <= sum(costs) <= total.high
    assert 925 <= covered <= 975


def test_a_mean_has_an_interval_from_two_answers_on() -> None:
    """Of one answer there is none; equal costs make it certain."""
    assert project_total([1], [0.5], [1, 1]).low is None
    assert project_total([5, 5], [0.5, 0.5], [7] * 3).high == 2.5
    wide = project_total([5, 5, 5], [0.1, 0.2, 0.3], [5] * 10)
    assert wide.estimate == pytest.approx(0.6 + 10 * fmean([0.1, 0.2, 0.3]))
    assert wide.low == 0.6


def test_a_batch_costs_its_own_price() -> None:
    """A pilot is asked live; the rest is projected with the price of the batch."""
    assert project_total([1, 1], [1.0, 1.0], [1] * 10, price_ratio=0.5).estimate == 7.0


def test_the_spread_of_texts_and_of_fields() -> None:
    """Texts are counted, numbers have a range, and no control character comes through."""
    assert list(describe_spread(["yes", "yes", "no\x1b"])) == ["answers: 2 different, most often yes (2)"]
    assert list(describe_spread(["a", "b"])) == ["answers: 2 different"]
    assert list(describe_spread([])) == []
