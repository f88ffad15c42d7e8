"""Where everything ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from prefect_dispatch.models.ledger import Gap, LedgerRow, Merge, Ref, Table, Violation
from prefect_dispatch.models.outcome import Attempt, Failure, Outcome, Usage
from prefect_dispatch.models.report import Report, Spending

if TYPE_CHECKING:
    import random
    from typing import Literal


def outcome(origin: Literal["asked", "stored", "shared"] | None, *costs: float | None, item: str = "i") -> Outcome:
    """An outcome whose attempts cost so much."""
    attempts = tuple(Attempt(usage=Usage(requests=1, prompt_tokens=2, completion_tokens=3, cost_usd=c)) for c in costs)
    return Outcome(brief="a", item=item, status="succeeded" if origin else "skipped", attempts=attempts, origin=origin)


def rough(origin: Literal["asked", "stored"]) -> Outcome:
    """An outcome that came at the third attempt, from the second model."""
    attempts = (
        Attempt(error="timeout: No answer within 1 s.", usage=Usage(requests=1, unsettled=1), waits=2, waited_s=0.5),
        Attempt(error="connection: It broke off.", reasks=1),
        Attempt(reasks=2, escalations=(Failure(kind="invalid_output", message="No."),)),
    )
    return Outcome(brief="a", item="i", status="succeeded", attempts=attempts, origin=origin)


def test_numbers_in_keys_count() -> None:
    """Lists go by the item's key as people count, then by brief."""
    refs = [Ref(brief=brief, item=item) for item in ("a10", "a2", "B", "a02") for brief in ("y", "x")]
    assert [str(ref) for ref in sorted(refs, key=lambda ref: ref.order)] == [
        *("x/B", "y/B", "x/a02", "y/a02", "x/a2", "y/a2", "x/a10", "y/a10"),
    ]


@given(
    names=st.lists(st.tuples(st.sampled_from("ab"), st.text(st.characters(exclude_categories=["Cs"]), min_size=1))),
    random=st.randoms(use_true_random=False),
)
def test_there_is_one_order(names: list[tuple[str, str]], random: random.Random) -> None:
    """Any keys can be ordered, and from whatever order the result is the same."""
    refs = [Ref(brief=brief, item=item) for brief, item in names]
    mixed = random.sample(refs, len(refs))
    assert sorted(refs, key=lambda ref: ref.order) == sorted(mixed, key=lambda ref: ref.order)


def test_names_of_outcomes() -> None:
    """An outcome, its row and its gap have one name, which can be a key."""
    gap = Gap(brief="a", item="i", status="failed", error=Failure(kind="timeout", message="Late."))
    row = LedgerRow(brief="a", item="i", disposition="failed")
    assert {Ref.of(each) for each in (outcome("asked"), gap, row)} == {Ref(brief="a", item="i")}


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        pytest.param([], Spending(), id="nothing"),
        pytest.param(
            [outcome("asked", 0.1, 0.2), outcome("stored", 5.0), outcome("shared", 7.0), outcome(None)],
            Spending(
                asked=1, cached=1, shared=1, requests=2, prompt_tokens=4, completion_tokens=6, tokens=10, cost_usd=0.3
            ),
            id="only-what-was-asked-counts",
        ),
        pytest.param(
            [outcome("asked", 0.1), outcome("asked", None)],
            Spending(asked=2, requests=2, prompt_tokens=4, completion_tokens=6, tokens=10, cost_usd=None),
            id="an-unknown-price-makes-the-sum-unknown",
        ),
        pytest.param([outcome("stored", None)], Spending(cached=1), id="what-is-stored-costs-nothing"),
        pytest.param(
            [rough("asked"), rough("stored")],
            Spending(
                asked=1,
                cached=1,
                requests=1,
                unsettled=1,
                reasks=3,
                retried={"connection": 1, "timeout": 1},
                escalated={"invalid_output": 1},
            ),
            id="what-went-wrong-on-the-way",
        ),
    ],
)
def test_spending(outcomes: list[Outcome], expected: Spending) -> None:
    """A run's spending is what was asked in this run, and no more."""
    assert Spending.of(outcomes) == expected


@given(costs=st.lists(st.floats(0, 1e6, allow_subnormal=False), max_size=9), random=st.randoms(use_true_random=False))
def test_spending_has_no_order(costs: list[float], random: random.Random) -> None:
    """Outcomes in another order spent the same, to the last digit."""
    outcomes = [outcome("asked", cost) for cost in costs]
    assert Spending.of(outcomes) == Spending.of(random.sample(outcomes, len(outcomes)))


def test_a_report_reads_back() -> None:
    """A report survives its JSON; the outcomes have a file of their own."""
    violation = Violation(law="precision", where="/a", message="Nobody said so.")
    report = Report(status="gaps", message="m", value={"a": [1]}, violations=(violation,), outcomes=(outcome("asked"),))
    back = Report.model_validate_json(report.model_dump_json())
    assert back == report.model_copy(update={"outcomes": ()})
    assert str(violation) == "precision at /a: Nobody said so."


def test_tables_of_one_name_are_refused() -> None:
    """One would take the other's place in a folder."""
    with pytest.raises(ValidationError, match="two tables are called 'trust'; each needs a name of its own"):
        Merge(value=1, ledger=(), tables=(Table(name="trust", title="a"), Table(name="trust", title="b")))
