"""The provider's own bill never exceeds a cap, whatever goes wrong; what it stops is told, and the next run goes on."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from fractions import Fraction
from threading import Lock
from typing import TYPE_CHECKING, Any

import pytest

from prefect_dispatch import LLM, Brief, Collate, Limits, Synthesize, dispatch
from prefect_dispatch.errors import DispatchFailed
from tests.openai_server import CUT, HTML_ERROR, MALFORMED, RESET, Behaviour, failure, openai_server, share

if TYPE_CHECKING:
    from prefect_dispatch import Report

pytestmark = pytest.mark.usefixtures("store")

LONGEST = 60
"""The most tokens that an answer may have."""
WORDS = ("time", "and", "tide", "wait", "for", "no", "man", "who", "counts", "them", "naïve", "übermäßig", "日本", "7")
ILL = (
    *(Behaviour(content="Hm."), Behaviour(content=None, refusal="I won't.")),
    *(CUT, RESET, MALFORMED, HTML_ERROR, failure(500), failure(429, retry_after=0.05)),
)
"""Some answers that can't be used, some of them paid for all the same, and some refusals, which are free."""


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key in the environment, as users have it."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-user-0123456789")


@dataclass
class Till:
    """A provider that counts tokens in its own way, takes money for whatever it worked on, and often fails."""

    price: tuple[int, int]
    """US dollars per million tokens read, and per million written."""
    faults: float
    """The share of calls that fail."""
    requests: int = 0
    tokens: int = 0
    millionths: int = 0
    """What it charges, in millionths of a dollar."""
    lock: Any = field(default_factory=Lock)

    def __call__(self, request: dict[str, Any], n: int) -> Behaviour:
        """Answer, and charge."""
        chance = f"{n} {len(request['messages'])}"
        read = 3 + sum(4 + len(str(each["content"]).encode()) // 4 for each in request["messages"])
        wrote = 1 + int(share(request, f"length {chance}") * LONGEST)
        assert wrote <= request["max_tokens"]
        fails = share(request, f"fails {chance}") < self.faults
        said = ILL[int(share(request, f"how {chance}") * len(ILL))] if fails else Behaviour(content="It says so [1].")
        free = said.status in {429, 500}
        with self.lock:
            self.requests += 1
            self.tokens += 0 if free else read + wrote
            self.millionths += 0 if free else read * self.price[0] + wrote * self.price[1]
        return replace(said, prompt_tokens=read, completion_tokens=wrote)

    @property
    def usd(self) -> Fraction:
        """What it charges."""
        return Fraction(self.millionths, 10**6)


@dataclass(frozen=True)
class Job:
    """A job that chance made."""

    items: list[str]
    price: tuple[int, int]
    synthesis: bool
    limits: Limits

    def run(self, url: str, limits: Limits) -> Report:
        """Return its report, however it ended."""
        executor = LLM(model="openai/test", api_base=url, params={"max_tokens": LONGEST}, usd_per_million=self.price)
        integrator = Synthesize(instructions="Sum up.") if self.synthesis else Collate()
        brief = Brief(name="words", instructions="Say what it says.")
        try:
            return dispatch([brief], self.items, executor=executor, integrator=integrator, limits=limits)
        except DispatchFailed as error:
            return error.report


def job(chance: random.Random) -> Job:
    """Return a job with one cap at least, which often is too low."""
    texts = [f"{at} {' '.join(chance.choices(WORDS, k=chance.randint(1, 80)))}" for at in range(chance.randint(2, 9))]
    price = chance.randint(1, 30), chance.randint(1, 90)
    calls = chance.uniform(0.5, 2 * len(texts))
    caps: dict[str, Any] = {
        "budget_usd": round(calls * (250 * price[0] + LONGEST * price[1]) / 1e6, 9),
        "budget_tokens": int(calls * (250 + LONGEST)),
        "budget_requests": int(calls),
    }
    chosen = chance.sample(sorted(caps), k=chance.randint(1, 3))
    limits = Limits(
        concurrency=chance.randint(1, 6),
        retries=chance.randint(0, 2),
        retry_delay_s=0,
        reasks=chance.randint(0, 2),
        timeout_s=60,
        **{cap: caps[cap] for cap in chosen},
    )
    return Job(texts, price, chance.random() < 0.5, limits)


@pytest.mark.slow
@pytest.mark.parametrize(
    "seed",
    [*range(5), *(pytest.param(seed, marks=[pytest.mark.slow, pytest.mark.long]) for seed in range(5, 105))],
)
def test_the_bill_never_exceeds_a_cap(seed: int) -> None:
    """Re-asks, retries, cut answers, an integrator that asks: all of it counts, at the provider's own prices."""
    chance = random.Random(seed)
    made, faults = job(chance), chance.choice((0.0, 0.2, 0.5))
    till = Till(made.price, faults)
    limits, keys = made.limits, [f"{at}" for at in range(len(made.items))]
    with openai_server(till) as server:
        report = made.run(server.url, limits)
        assert till.requests == server.count == report.usage.requests
        assert limits.budget_requests is None or till.requests <= limits.budget_requests
        assert limits.budget_tokens is None or till.tokens <= limits.budget_tokens
        assert limits.budget_usd is None or till.usd <= Fraction(str(limits.budget_usd))

        assert len(report.ledger) == len(keys)
        skipped = {gap.item: gap.error.kind for gap in report.gaps if gap.status == "skipped"}
        assert set(skipped.values()) <= {"budget", "circuit"}
        answered = {outcome.item for outcome in report.outcomes if outcome.status == "succeeded"}
        assert answered.isdisjoint(gap.item for gap in report.gaps)

        till.faults, spent = 0.0, till.requests
        again = made.run(server.url, Limits(concurrency=limits.concurrency, timeout_s=60))
        assert {outcome.item for outcome in again.outcomes if outcome.origin == "stored"} == answered
        assert not again.gaps
        assert again.usage.requests == till.requests - spent
        own = again.integration.requests
        assert till.requests - spent - own == len(keys) - len(answered)
