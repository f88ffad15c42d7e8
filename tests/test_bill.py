"""The bill of a run: its rows add up, in any grouping and any order, and what is unknown is no number."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import TYPE_CHECKING, Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from prefect_dispatch import Outcome, Report
from prefect_dispatch.models.bill import (
    SPLITS,
    BillRow,
    Costs,
    create_bill,
    rows_paid,
    split_bill,
    sum_costs,
)
from prefect_dispatch.models.cascade_decision import CascadeDecision
from prefect_dispatch.models.outcome import Answer, Attempt, CascadeAttempt, ItemizedAttempt, Step, Usage, UsageShare
from prefect_dispatch.models.report import Spending
from prefect_dispatch.reporting.costs import bill_rows, describe_bill
from prefect_dispatch.reporting.markdown import markdown

if TYPE_CHECKING:
    from collections.abc import Sequence

COUNTS = tuple(name for name in Costs.model_fields if not name.endswith("_usd"))
MODELS = st.sampled_from(["", "openai/gpt-5", "openai/gpt-5-nano"])
COSTS = st.none() | st.floats(0, 1_000, allow_nan=False) | st.sampled_from([0.1, 0.2, 0.3, 1e-9, 5e-10, 1.25e-7])
DECIDED = CascadeDecision(is_cheap=True, why="valid", reason="its answer is valid")


@st.composite
def usages(draw: st.DrawFn) -> Usage:
    """Any usage of some calls, with costs that floats can't add exactly."""
    cached, written, rest = (draw(st.integers(0, 99)) for _ in range(3))
    return Usage(
        requests=draw(st.integers(0, 3)),
        prompt_tokens=cached + written + rest,
        cached_tokens=cached,
        cache_write_tokens=written,
        completion_tokens=draw(st.integers(0, 99)),
        cost_usd=draw(COSTS),
        unsettled=draw(st.integers(0, 2)),
    )


@st.composite
def attempts(draw: st.DrawFn) -> Attempt:
    """An attempt of any class."""
    shares = tuple(
        UsageShare(
            model=draw(MODELS),
            tier=draw(st.sampled_from(["live", "batch", "flex"])),
            step=draw(st.sampled_from([each for each in get_args(Step) if each != "retry"])),
            usage=draw(usages()),
        )
        for _ in range(draw(st.integers(0, 3)))
    )
    common: dict[str, Any] = {
        "model": draw(MODELS),
        "part": draw(st.sampled_from(["", "1"])),
        "error": draw(st.sampled_from([None, "timeout: No answer."])),
    }
    if not shares:
        own = draw(usages())
        plain = Attempt(**common, usage=own)
        return draw(st.sampled_from([plain, CascadeAttempt(**common, usage=own, cascade=DECIDED)]))
    total = sum((share.usage for share in shares), Usage())
    itemized = ItemizedAttempt(**common, usage=total, shares=shares)
    return draw(st.sampled_from([itemized, CascadeAttempt(**common, usage=total, shares=shares, cascade=DECIDED)]))


@st.composite
def outcomes(draw: st.DrawFn) -> Outcome:
    """An outcome of any origin; few fingerprints, so that some are equal."""
    return Outcome(
        brief=draw(st.sampled_from(["terms", "names"])),
        item=draw(st.sampled_from("abc")),
        status="succeeded",
        origin=draw(st.sampled_from(["asked", "stored", "shared", None])),
        fingerprint=draw(st.sampled_from(["", "f1", "f2", "f3"])),
        attempts=tuple(draw(st.lists(attempts(), max_size=3))),
    )


def exact(amounts: Sequence[float]) -> Decimal:
    """Return the sum of amounts as JSON states them."""
    return sum((Decimal(str(each)) for each in amounts), Decimal())


@settings(deadline=None)
@given(
    work=st.lists(outcomes(), max_size=6),
    asked=st.lists(outcomes(), max_size=2),
    pilot=st.sets(st.sampled_from(["f1", "f2"])),
    by=st.randoms(use_true_random=False),
)
def test_every_split_adds_up_to_the_total(work: list[Outcome], asked: list[Outcome], pilot: set[str], by: Any) -> None:  # noqa: ANN401 -- random.Random
    """Decimal for decimal, in any order of the outcomes; an unknown cost stays one, and each call of it is counted."""
    bill = create_bill(work, asked, pilot)
    # 1. Any order gives the same bill, as long as equal stored work keeps its first place.
    spent = [each for each in work if each.origin != "stored"]
    shuffled = list(spent)
    by.shuffle(shuffled)
    assert create_bill(spent, (), pilot) == create_bill(shuffled, (), pilot)
    # 2. Every split, and that by when it was paid for, has the same total.
    for rows in (bill, rows_paid(bill, "run"), rows_paid(bill, "stored")):
        total = sum_costs(rows)
        for split in SPLITS:
            groups = split_bill(rows, split)
            assert sum_costs(groups.values()) == total
            assert exact([each.known_usd for each in groups.values()]) == Decimal(str(total.known_usd))
            assert exact([each.estimated_usd for each in groups.values()]) == Decimal(str(total.estimated_usd))
            assert all(sum(getattr(each, name) for each in groups.values()) == getattr(total, name) for name in COUNTS)
        assert (total.cost_usd is None) == (total.unpriced > 0) == any(row.cost_usd is None for row in rows)
    both = [sum_costs(rows_paid(bill, "run")), sum_costs(rows_paid(bill, "stored"))]
    assert sum_costs(both) == sum_costs(bill)
    # 3. The total is that of the run, and of its attempts.
    usage, total = Spending.of([*work, *asked], bill), both[0]
    assert (usage.cost_usd, usage.estimated_usd) == (total.cost_usd, total.estimated_usd)
    for name in ("requests", "prompt_tokens", "cached_tokens", "completion_tokens", "unsettled"):
        assert getattr(usage, name) == getattr(total, name)
    shares = [share for each in (*work, *asked) for attempt in each.spent for share in attempt.usage_shares]
    assert (total.cost_usd is None) == any(share.usage.cost_usd is None for share in shares)
    known = sum(share.usage.cost_usd or 0.0 for share in shares)
    assert total.known_usd == pytest.approx(known, abs=1e-9 * max(1, len(bill)))
    # 4. A report that was written and read has the same bill.
    report = Report(status="complete", message="", bill=bill)
    assert Report.model_validate_json(report.model_dump_json()).bill == bill


def test_what_was_paid_for_before_is_kept_apart() -> None:
    """A stored answer of equal items counts once, one that is shared not at all, and one that was left out neither."""
    attempt = Attempt(model="m", usage=Usage(requests=1, cost_usd=0.25))
    base = Outcome(brief="b", item="x", status="succeeded", attempts=(attempt,), fingerprint="f")
    made = [base.model_copy(update={"item": key, "origin": origin}) for key, origin in enumerate(["stored", "stored"])]
    other = [base.model_copy(update={"fingerprint": "g", "origin": origin}) for origin in ("asked", "shared", None)]
    bill = create_bill([*made, *other])
    assert [(row.paid, row.requests, row.cost_usd) for row in bill] == [("run", 1, 0.25), ("stored", 1, 0.25)]
    assert list(describe_bill(bill)) == ["Paid before, for answers from the store: $0.2500"]
    shown = markdown(Report(status="complete", message="", bill=bill))
    assert "Paid before this run, for the answers from the store: &#36;0.2500." in shown


def test_an_attempt_after_a_failed_one_is_a_retry_and_a_part_is_not() -> None:
    """Its first ask; its re-asks and fallbacks keep their reason."""
    failed = Attempt(model="m", usage=Usage(requests=1), error="timeout: No answer.")
    shares = tuple(
        UsageShare(model="m", step=step, usage=Usage(requests=1)) for step in ("ask", "re-ask", "fallback", "cascade")
    )
    again = ItemizedAttempt(model="m", usage=Usage(requests=4), shares=shares)
    part = Attempt(model="m", part="1", usage=Usage(requests=1))
    outcome = Outcome(brief="b", item="x", status="succeeded", origin="asked", attempts=(failed, again, part))
    assert {step: costs.requests for step, costs in split_bill(create_bill([outcome]), "step").items()} == {
        "ask": 2,
        "cascade": 1,
        "fallback": 1,
        "re-ask": 1,
        "retry": 1,
    }


def test_an_unknown_price_is_never_nothing() -> None:
    """The known part and the number of other calls are shown in its place."""
    priced, unpriced = (
        Attempt(model=model, usage=Usage(requests=2, prompt_tokens=10, cached_tokens=4, cost_usd=cost))
        for model, cost in (("a", 0.5), ("b", None))
    )
    made = [
        Outcome(brief="b", item=str(at), status="succeeded", origin="asked", attempts=(each,))
        for at, each in enumerate((priced, unpriced))
    ]
    bill = create_bill(made)
    total = sum_costs(bill)
    assert (total.cost_usd, total.known_usd, total.unpriced) == (None, 0.5, 2)
    assert [(row.model, row.cost_usd, row.known_usd) for row in bill] == [("a", 0.5, 0.5), ("b", None, 0.0)]
    assert list(describe_bill(bill)) == ["By model: a $0.5000, b 2 calls of unknown price"]
    assert [row[-1] for row in bill_rows(bill)] == [0.5, "2 calls of unknown price"]
    shown = markdown(Report(status="complete", message="", bill=bill, usage=Spending.of(made, bill)))
    assert "| by |  | requests | prompt tokens | of that cached | completion tokens | cost in USD |" in shown
    assert "| model | b | 2 | 10 | 4 | 0 | 2 calls of unknown price |" in shown
    assert "| of that from the provider's cache |" in shown


def test_many_values_are_counted_in_a_line() -> None:
    """The dearest five are named; a model without a name stands for none; what is free has no bill."""
    made = [
        Outcome(
            brief="b",
            item=str(at),
            status="succeeded",
            origin="asked",
            attempts=(Attempt(model="m" * at, usage=Usage(requests=1, cost_usd=0.25 * at)),),
        )
        for at in range(7)
    ]
    [line] = describe_bill(create_bill(made))
    assert line.startswith("By model: mmmmmm $1.5000, mmmmm $1.2500, ")
    assert line.endswith(", mm $0.5000, 2 more")
    assert "no model" in {row[1] for row in bill_rows(create_bill(made))}
    free = [each.model_copy(update={"attempts": (Attempt(model=each.item, usage=Usage(requests=1)),)}) for each in made]
    assert (list(describe_bill(create_bill(free))), bill_rows(create_bill(free))) == ([], [])


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param({"unpriced": 1, "cost_usd": 0.0}, id="unknown-as-nothing"),
        pytest.param({"cost_usd": 1.0}, id="no-known-part"),
        pytest.param({"prompt_tokens": 3, "uncached_tokens": 2}, id="lost-tokens"),
        pytest.param({"cost_usd": -1.0, "known_usd": -1.0}, id="negative"),
        pytest.param({"requests": "many"}, id="type"),
        pytest.param({"prize": 1}, id="unknown-key"),
    ],
)
def test_a_contradictory_row_is_refused(wrong: dict[str, object]) -> None:
    """Such a row was not written by a run."""
    row = {"paid": "run", "stage": "items", "brief": "b", "model": "m", "tier": "live", "step": "ask"}
    assert BillRow.model_validate(row)
    with pytest.raises(ValidationError):
        BillRow.model_validate({**row, **wrong})


def test_attempts_are_stored_as_they_were() -> None:
    """One model, one price and no re-ask: the record has no new field; the other classes are read back as they were."""
    plain = Attempt(model="m", usage=Usage(requests=1))
    share = UsageShare(model="m", tier="batch", usage=Usage(requests=1))
    itemized = ItemizedAttempt(model="m", usage=Usage(requests=1), shares=(share,))
    cascade = CascadeAttempt(model="m", usage=Usage(requests=1), cascade=DECIDED, shares=(share,))
    answer = Answer(value=1, attempts=(plain, itemized, cascade))
    assert "shares" not in json.loads(answer.model_dump_json())["attempts"][0]
    again = Answer.model_validate_json(answer.model_dump_json())
    assert again == answer
    assert [type(each) for each in again.attempts] == [Attempt, ItemizedAttempt, CascadeAttempt]
    assert again.attempts[0].usage_shares == (UsageShare(model="m", usage=Usage(requests=1)),)


def test_what_this_run_asked_was_not_paid_for_before() -> None:
    """An answer that the same run finds in the store once more is in the bill once, in any order."""
    attempt = Attempt(model="openai/gpt-5", usage=Usage(requests=1, cost_usd=0.25))
    asked, again = (
        Outcome(brief="mend", item="a", status="succeeded", attempts=(attempt,), origin=origin, fingerprint="f")
        for origin in ("asked", "stored")
    )
    for order in ((asked, again), (again, asked)):
        assert [(row.paid, row.cost_usd) for row in create_bill([], order)] == [("run", 0.25)]
    assert [row.paid for row in create_bill([again])] == ["stored"]
