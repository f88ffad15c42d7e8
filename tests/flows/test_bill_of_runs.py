"""What runs pay is what servers bill, and the report splits it by model, price, reason and stage."""

from __future__ import annotations

from collections import Counter
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from prefect_dispatch import LLM, Brief, Limits, Pilot, Reply, Tournament, dispatch
from prefect_dispatch.cli.console import summary
from prefect_dispatch.errors import DispatchFailed
from prefect_dispatch.models.bill import SPLITS, rows_paid, split_bill, sum_costs
from prefect_dispatch.models.outcome import Usage
from prefect_dispatch.reporting.tables import outcomes_frame
from prefect_dispatch.tasks import provider_batches
from prefect_dispatch.testing import ScriptedExecutor
from tests.batch_server import batch_server
from tests.openai_server import Behaviour, document, failure, openai_server

if TYPE_CHECKING:
    import pandas as pd

    from prefect_dispatch import Ask, Report

pytestmark = pytest.mark.usefixtures("store")

SIZES = Brief(
    name="sizes",
    instructions="Say how long it is.",
    output={"type": "object", "properties": {"size": {"type": "integer"}}, "required": ["size"]},
)
GOOD, WRONG = '{"size": 3}', '{"size": "long"}'
USD = {"cheap": 1, "strong": 20, "spare": 5}
"""US dollars per million tokens of each model."""


class Server:
    """A server that bills by model and reason, as it knows them; ten tokens in, four of them cached, five out."""

    def __init__(self) -> None:
        """Bill nothing yet."""
        self.calls: Counter[str] = Counter()
        self.billed: Counter[str] = Counter()

    def __call__(self, request: dict[str, Any], n: int) -> Behaviour:
        """Answer by what the item and the model are called, and bill what is answered."""
        model, item = str(request["model"]), document(request).splitlines()[1]
        self.calls[model] += 1
        is_reask = len(request["messages"]) > 2
        content = GOOD
        if item == "unstable" and n == 1:
            return failure(500, "it failed")
        if item == "odd" and model == "cheap" and not is_reask:
            content = WRONG
        if item == "hard" and model != "spare":
            content = WRONG
        self.billed[model] += 1
        return Behaviour(content=content, cached_tokens=4)

    @property
    def usd(self) -> Decimal:
        """The whole bill."""
        return sum((Decimal(count * 15 * USD[model]) / 10**6 for model, count in self.billed.items()), Decimal())


def by(report: Report, split: Any, count: str = "requests") -> dict[str, Any]:  # noqa: ANN401 -- a name
    """Return a figure of what a run has paid for, by a column of its bill."""
    return {name: getattr(costs, count) for name, costs in split_bill(rows_paid(report.bill, "run"), split).items()}


def test_a_run_of_everything_pays_what_its_server_bills(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cascade with a re-ask, a retry and a fallback, after a pilot; the second run has it all from the store."""
    server_bill = Server()
    monkeypatch.setenv("OPENAI_API_KEY", "none-needed")
    items = ["plain", "odd", "hard", "unstable", "equal", "other"]
    with openai_server(server_bill) as server:
        llm = LLM.model_validate(
            {
                "model": "openai/strong",
                "api_base": server.url,
                "usd_per_million": (20, 20),
                "params": {"max_tokens": 5},
                "cascade": {"cheap": "openai/cheap", "usd_per_million": (1, 1)},
                "fallbacks": ["openai/spare"],
            }
        )
        limits = Limits(retries=1, retry_delay_s=0, reasks=1, pilot=Pilot(items=2, gate="auto", min_success=0.0))
        report = dispatch([SIZES], items, executor=llm, limits=limits)
        first = sum_costs(report.bill)
        # 1. By model and reason, as the server has it.
        models = by(report, "model")
        assert {name.removeprefix("openai/"): count for name, count in models.items()} == dict(server_bill.calls)
        assert by(report, "step")["re-ask"] >= 2
        assert by(report, "step")["cascade"] == len(items)
        assert by(report, "step")["fallback"] == 1
        assert set(by(report, "stage")) == {"items", "pilot"}
        assert by(report, "tier") == {"live": sum(server_bill.calls.values())}
        # 2. Cached tokens are shown, as far as the server reports usage.
        assert report.usage.cached_tokens == 4 * sum(server_bill.billed.values())
        assert f"({report.usage.cached_tokens} cached)" in summary(report, None)
        assert "By step: " in summary(report, None)
        # 3. The second run pays nothing, and says what was paid for before.
        again = dispatch([SIZES], items, executor=llm, limits=limits)
    assert (again.usage.requests, again.usage.cost_usd, rows_paid(again.bill, "run")) == (0, 0.0, [])
    stored = sum_costs(rows_paid(again.bill, "stored"))
    assert (stored.requests, stored.known_usd) == (first.requests, first.known_usd)
    frame = outcomes_frame(again, "pandas")
    assert (frame["paid_usd"].sum(), int(frame["cached_tokens"].sum())) == (0.0, report.usage.cached_tokens)


def test_costs_add_up_to_the_bill_of_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last digit, and so do the columns of the items; a retry after a failure that reports no usage is one."""
    monkeypatch.setenv("OPENAI_API_KEY", "none-needed")
    server_bill = Server()
    with openai_server(server_bill) as server:
        executor = LLM.model_validate(
            {"model": "openai/cheap", "api_base": server.url, "usd_per_million": (1, 1), "params": {"max_tokens": 5}}
        )
        limits = Limits(retries=1, retry_delay_s=0, reasks=1)
        report = dispatch([SIZES], ["plain", "odd", "unstable"], executor=executor, limits=limits)
    assert by(report, "step") == {"ask": 3, "re-ask": 1, "retry": 1}
    assert Decimal(str(report.usage.cost_usd)) == server_bill.usd
    for split in SPLITS:
        assert sum(Decimal(str(each)) for each in by(report, split, "known_usd").values()) == server_bill.usd
    frame: pd.DataFrame = outcomes_frame(report, "pandas")
    assert frame["paid_usd"].sum() == pytest.approx(float(server_bill.usd))
    assert int(frame["requests"].sum()) == report.usage.requests
    assert set(frame["tiers"]) == {"live"}


def test_a_model_without_a_price_is_counted_as_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """No price is known of it, so its cost is empty in the report, and words at the terminal."""
    monkeypatch.setenv("OPENAI_API_KEY", "none-needed")
    with openai_server(Behaviour(content=GOOD)) as server:
        report = dispatch([SIZES], ["a", "b"], executor=LLM(model="openai/nameless", api_base=server.url))
    [row] = report.bill
    assert (row.requests, row.cost_usd, row.known_usd, row.unpriced) == (2, None, 0.0, 2)
    assert "cost unknown" in summary(report, None)


def test_the_integrators_queries_are_a_stage_of_their_own() -> None:
    """A judge's calls are the integrator's, with their own model."""

    def answer(ask: Ask) -> Reply:
        is_judge = ask.brief.name == "judge"
        value: Any = {"reason": "It is longer.", "winner": "first"} if is_judge else ask.brief.name
        usage = Usage(requests=1, prompt_tokens=10, cost_usd=0.3 if is_judge else 0.1)
        return Reply(value=value, usage=usage, model="judge" if is_judge else "writer")

    briefs = [Brief(name=name, instructions=f"Write like {name}.") for name in ("a", "bb", "ccc")]
    integrator = Tournament(criterion="The longer one is better.")
    report = dispatch(briefs, ["mug"], executor=ScriptedExecutor(answer), integrator=integrator)
    assert by(report, "stage", "cost_usd") == {"integrator": report.integration.cost_usd, "items": 0.3}
    assert by(report, "model") == {"judge": report.integration.requests, "writer": 3}
    total = Decimal(str(report.usage.cost_usd))
    assert total == Decimal("0.3") + Decimal("0.3") * report.integration.requests


@pytest.mark.slow
def test_a_batch_has_a_price_tier_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half the price; an item that is asked live after its batch keeps both, and a rejected one its tokens."""
    monkeypatch.setenv("OPENAI_API_KEY", "none-needed")
    monkeypatch.setattr(provider_batches, "LEAST_S", 0.02)

    def behave(request: dict[str, Any], n: int) -> Behaviour:
        item = document(request).splitlines()[1]
        if item == "broken":
            return failure(400, "it is broken")
        return Behaviour(content=WRONG if item == "odd" and n == 1 else GOOD)

    with batch_server(behave) as server:
        executor = LLM.model_validate(
            {
                "model": "openai/test",
                "api_base": server.url,
                "mode": "batch",
                "usd_per_million": (2, 4),
                "rounds": 1,
            }
        )
        limits = Limits(retries=1, retry_delay_s=0, reasks=1)
        try:
            report = dispatch([SIZES], ["plain", "odd", "broken"], executor=executor, limits=limits)
        except DispatchFailed as error:  # pragma: no cover -- shows what went wrong
            report = error.report
    tiers = by(report, "tier", "known_usd")
    assert set(tiers) == {"batch", "live"}
    assert tiers["batch"] == pytest.approx(2 * (10 * 1e-6 + 5 * 2e-6))
    assert by(report, "tier")["batch"] == 3
    assert sum_costs(report.bill).known_usd == report.usage.cost_usd
