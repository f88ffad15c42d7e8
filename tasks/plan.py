"""Plan of a job: its asks, tokens, cost and time, estimated before anything is spent."""

from __future__ import annotations

import math
import re
from collections import Counter
from statistics import median
from typing import TYPE_CHECKING, Literal

from prefect_dispatch.calls.budget import executor_name, find_cost_bound
from prefect_dispatch.calls.prompt_prefixes import prefix_key
from prefect_dispatch.errors import JobError
from prefect_dispatch.executors.base import Ask, BaseExecutor, executor_for
from prefect_dispatch.executors.coding.coding_agent import CodingAgent
from prefect_dispatch.executors.llm.cascade import cascade_of
from prefect_dispatch.executors.llm.discounts import BATCH_PROVIDER, FLEX, FLEX_TIMEOUT_S, flex_timeout_s
from prefect_dispatch.executors.llm.llm import LLM
from prefect_dispatch.models.base import Strict
from prefect_dispatch.models.outcome import LIVE
from prefect_dispatch.security.escaping import count_noun
from prefect_dispatch.tasks.item_splitting import expand_asks, load_joined_answer
from prefect_dispatch.tasks.result_store import LenientBlobStore, stored_answer
from prefect_dispatch.tasks.work_item import WorkItem, group_equal_work

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from prefect_dispatch.executors.base import CostBound, Executor
    from prefect_dispatch.executors.llm.litellm_adapter import Price
    from prefect_dispatch.models.limits import Limits
    from prefect_dispatch.models.outcome import Answer
    from prefect_dispatch.tasks.result_store import BlobStore


SAMPLE = 200
"""Prompts whose tokens are counted, at most; larger jobs are extrapolated from an evenly spaced sample."""


ASSUMED_LATENCY_S = 1.0


ASSUMED_TOKENS_PER_S = 50.0
"""Assumptions without measurements: one second, then fifty tokens a second."""


MAX_NAMED = 5
"""Damaged answers that a note names, at most."""


MAX_UNREADABLE = 10
"""Unreadable records, at most: with more, what is stored counts as unknown."""


MAX_RECORDED = 3000
"""Task runs whose records Prefect's server can queue: three or four messages each, of 10,000 in all."""


WORTHWHILE_S = 20.0
"""Seconds of sequential work below which a fan-out is not worthwhile: starting one costs seconds."""


NO_ITEMS = "Nothing to ask: there are no items."


BATCH_S = 86_400.0
"""Seconds within which a provider completes a batch."""
MAX_DEADLINE_S = 365 * 86_400.0
"""Longest deadline in seconds: a year."""
_UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86_400.0}
_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,3})?) ?(s|m|min|h|d)", re.ASCII)

Mode = Literal["live", "flex", "batch"]


class PlannedMode(Strict):
    """What the asks of a plan take in one mode of the executor."""

    mode: Mode
    """The mode."""
    cost_usd: float
    """US dollars, without the integrator's own queries."""
    seconds: float
    """Seconds with the job's concurrency: as planned for `live`; at most, for `flex` and `batch`."""


class Plan(Strict):
    """What a job will take."""

    briefs: int
    """The number of briefs."""
    items: int
    """The number of items."""
    work: int
    """The number of (brief, item) pairs."""
    stored: int
    """How many have a stored answer."""
    shared: int
    """How many are equal to another of this job and share its answer."""
    to_ask: int
    """How many asks are sent to an executor; an item that is too long counts with each part of it."""
    parts: int = 0
    """How many of those are such parts."""
    prompt_tokens: int | None
    """Tokens to send, including the integrator's, without re-asks and retries; empty where they can't be counted."""
    cached_tokens: int | None = None
    """The part of the tokens to send that the provider will find in its cache; empty where none is known."""
    completion_tokens: int | None
    """Tokens expected in the answers."""
    cost_usd: float | None
    """US dollars for both; empty where the price is unknown."""
    seconds_in_turn: float
    """Seconds if the asks were sequential."""
    seconds_in_parallel: float
    """Seconds with the job's concurrency."""
    modes: tuple[PlannedMode, ...] = ()
    """What it would cost in each mode of the executor; empty where there is nothing to compare."""
    deadline_s: float | None = None
    """The deadline that the recommendation counts with, in seconds from the start; empty: none was given."""
    basis: str
    """What these figures are based on."""
    recommendation: Literal["nothing-to-ask", "not-worth-fanning-out", "fan-out"]
    """The recommendation."""
    advice: str
    """The recommendation in a sentence."""
    integrator: str = ""
    """What the integrator asks as well, in a sentence; empty where it asks nothing. No time is planned for it."""
    notes: tuple[str, ...] = ()
    """What the limits will stop, and other warnings, a sentence each."""


class StoredAnswers:
    """Stored answers to the work of a job.

    Attributes:
        answers: The answers, by the fingerprint of their work.
        blobs: The store; a record that can't be read counts as missing, and is reported.
    """

    def __init__(self, work: Sequence[WorkItem], blobs: BlobStore, again: Collection[str] = ()) -> None:
        """Look the answers up.

        Args:
            work: Every (brief, item).
            blobs: The store of answers.
            again: The fingerprints whose stored answers are ignored.

        Raises:
            TransientError: If the storage can't be read.
        """
        self.blobs = LenientBlobStore(blobs, MAX_UNREADABLE)
        self.answers: dict[str, Answer] = {}
        self.add(work, again)

    def add(self, work: Iterable[WorkItem], again: Collection[str] = ()) -> None:
        """Look up the answers to more work.

        Args:
            work: The work.
            again: The fingerprints whose stored answers are ignored.

        Raises:
            TransientError: If the storage can't be read.
        """
        # Equal work is looked up once.
        for each in work:
            if each.fingerprint in again or each.fingerprint in self.answers:
                continue
            if answer := stored_answer(self.blobs, each) or load_joined_answer(self.blobs, each):
                self.answers[each.fingerprint] = answer

    @property
    def notes(self) -> tuple[str, ...]:
        """Warnings about damaged records, if there are any."""
        names = [*self.blobs.damaged.values()]
        if not names:
            return ()
        named = ", ".join(names[:MAX_NAMED]) + (", …" if len(names) > MAX_NAMED else "")
        what = "1 stored answer was" if len(names) == 1 else f"{len(names)} stored answers were"
        again = "is" if len(names) == 1 else "are"
        return (f"{what} altered or cut off in the store ({named}), and {again} asked again.",)


def estimate(
    work: Sequence[WorkItem], executor: Executor, limits: Limits, stored: StoredAnswers, *, again: Collection[str] = ()
) -> Plan:
    """Return the plan of some work; nothing is asked.

    Args:
        work: Every (brief, item), in order.
        executor: The executor of the work.
        limits: The limits; `concurrency` determines the time in parallel.
        stored: The stored answers.
        again: The fingerprints whose stored answers are ignored.
    """
    # 1. Find what has to be asked.
    groups, answers, blobs = group_equal_work(work), stored.answers, stored.blobs
    wholes = [group[0] for name, group in groups.items() if name not in answers]
    stored_count = sum(len(group) for name, group in groups.items() if name in answers)
    for chosen in {work.brief.model: executor_for(work.brief, executor) for work in wholes}.values():
        BaseExecutor.of(chosen).require_available()
    asks = [ask for each in wholes for ask in expand_asks(each, executor, blobs, refresh=each.fingerprint in again)]
    # 2. Estimate tokens and cost, then the time, which concurrency or a rate limit bounds.
    prompt, completion, cost, token_basis = _estimate_tokens(asks, executor)
    cached, saved = _estimate_cached(asks, executor)
    cost = None if cost is None else round(cost - saved, 6)
    most_s = limits.timeout_s if BaseExecutor.of(executor).cancel_immediately else None
    seconds, time_basis = _seconds_each(list(answers.values()), completion, len(asks), most_s)
    side_by_side = seconds * math.ceil(len(asks) / limits.concurrency)
    rate_bound_s, rate_basis = _rate_bound_seconds(
        asks, executor, limits, None if completion is None else (prompt or 0) + completion
    )
    in_turn = round(max(seconds * len(asks), rate_bound_s), 1)
    recommendation, advice = _advise(len(asks), in_turn) if work else ("nothing-to-ask", NO_ITEMS)
    basis = (
        token_basis,
        _cascade_basis(asks, executor, cost),
        time_basis,
        rate_basis if rate_bound_s > side_by_side else "",
        "re-asks and retries not included",
        _read_error_note(blobs),
    )
    plan = Plan(
        briefs=len({each.brief.name for each in work}),
        items=len({each.item.key for each in work}),
        work=len(work),
        stored=stored_count,
        shared=len(work) - stored_count - len(wholes),
        to_ask=len(asks),
        parts=sum(each.brief.part for each in asks),
        prompt_tokens=prompt,
        cached_tokens=cached or None,
        completion_tokens=completion,
        cost_usd=cost,
        seconds_in_turn=in_turn,
        seconds_in_parallel=round(max(side_by_side, rate_bound_s), 1),
        basis="; ".join(filter(None, basis)),
        recommendation=recommendation,
        advice=advice,
    )
    return plan.model_copy(update={"modes": _compare_modes(asks, executor, limits, plan)})


def _estimate_tokens(asks: Sequence[WorkItem], executor: Executor) -> tuple[int | None, int | None, float | None, str]:
    if not asks:
        return 0, 0, 0.0, "nothing to count"
    # 1. Count an evenly spaced sample.
    sample = asks[:: max(1, math.ceil(len(asks) / SAMPLE))]
    scale = len(asks) / len(sample)
    models = {each.brief.model: BaseExecutor.of(executor_for(each.brief, executor)) for each in sample}
    sent = expected = 0
    cost: float | None = 0.0
    for each, chosen in ((work, one) for work in sample for one in _planned_calls(models[work.brief.model])):
        prompt_tokens = chosen.count_tokens(each.brief, each.item)
        completion_tokens = chosen.expected_completion_tokens(each.brief)
        if prompt_tokens is None or completion_tokens is None:
            return None, None, None, "this executor can't count tokens"
        price, fee = chosen.price(), chosen.call_fee()
        sent, expected = sent + prompt_tokens, expected + completion_tokens
        if cost is None or price is None or fee is None:
            cost = None
        else:
            cost += fee + prompt_tokens * price[0] + completion_tokens * price[1]
    # 2. Extrapolate to all prompts.
    prompt, completion = round(scale * sent), round(scale * expected)
    cost = None if cost is None else round(scale * cost, 6)
    basis = "all prompts counted" if len(sample) == len(asks) else f"{len(sample)} of {len(asks)} prompts counted"
    return prompt, completion, cost, basis if cost is not None else f"{basis}, price unknown"


def _planned_calls(executor: BaseExecutor) -> list[BaseExecutor]:
    """Return the executors of the calls for an item: of a cascade, of all that there may be."""
    if (cascade := cascade_of(executor)) is None:
        return [executor]
    cheap = BaseExecutor.of(executor.fallback_chain[0])
    return [*[cheap] * cascade.samples, BaseExecutor.of(executor.without_cascade)]


def _cascade_basis(asks: Sequence[WorkItem], executor: Executor, most: float | None) -> str:
    """Return between what a cascade's cost lies, which is planned as its most; empty without one.

    Args:
        asks: What is asked.
        executor: The executor.
        most: The cost if both models are asked for every item.
    """
    base = BaseExecutor.of(executor)
    if (cascade := cascade_of(executor)) is None or most is None or not asks:
        return ""
    least = (_estimate_tokens(asks, base.fallback_chain[0])[2] or 0.0) * cascade.samples
    learned = asks[: cascade.learn.items] if cascade.learn else ()
    least += _estimate_tokens(learned, base.without_cascade)[2] or 0.0
    return f"cascade: {least:.6f} USD if the cheap model's answers count, and up to {most:.6f} if none does"


def _estimate_cached(asks: Sequence[WorkItem], executor: Executor) -> tuple[int, float]:
    """Return the prompt tokens that providers will find in their caches, and the US dollars that this saves.

    The first call of each brief writes its beginning into the cache, and all others read it there.
    """
    cached, saved = 0, 0.0
    counts = Counter(prefix_key(each.brief) for each in asks)
    for key, brief in {prefix_key(each.brief): each.brief for each in asks}.items():
        chosen = BaseExecutor.of(executor_for(brief, executor))
        if cascade_of(chosen):  # how often each model is asked isn't known
            continue
        others = counts[key] - 1
        tokens = chosen.prefix_tokens(brief) if others else 0
        cached += others * tokens
        price, prices = chosen.price(), chosen.prefix_prices()
        if tokens and price and prices:
            read, write = prices
            saved += tokens * (others * (price[0] - read) + price[0] - write)
    return cached, saved


def budget_note(work: Sequence[WorkItem], executor: Executor, limits: Limits) -> str:
    """Return a warning if a budget is less than the most that some calls may take, so that none of these is sent.

    Args:
        work: What is asked; a sample of it is examined.
        executor: The executor of the work.
        limits: The limits of the run.
    """
    if not work or not (limits.budget_usd or limits.budget_tokens):
        return ""
    sample = work[:: max(1, math.ceil(len(work) / SAMPLE))]
    refused: list[CostBound] = []
    for each in sample:
        ask = Ask(brief=each.brief.fill_placeholders(each.item), item=each.item)
        bound = find_cost_bound(limits, executor_for(each.brief, executor), ask)
        if bound is not None and _exceeds_budget(bound, limits):
            refused.append(bound)
    longest = max((each.completion_tokens or 0 for each in refused), default=0)
    if not longest:
        return ""
    allowed = round((len(sample) - len(refused)) * len(work) / len(sample))
    dollars = limits.budget_usd is not None and any((each.cost_usd or 0) > limits.budget_usd for each in refused)
    budget = f"${limits.budget_usd:g}" if dollars else f"{limits.budget_tokens:,} tokens"
    return (
        f"The budget of {budget} allows {allowed} of {count_noun(len(work), 'call')}, because each may take "
        f"{longest:,} tokens; set a limit of answer length (`max_tokens`)."
    )


_AFTER_PILOT = {
    "ask": "then a person decides whether the rest is",
    "auto": "then its thresholds decide whether the rest is",
    "report": "then the run ends",
}


def pilot_note(asks: int, limits: Limits) -> str:
    """Return what the pilot of a run will do; empty where there is none.

    Args:
        asks: The work that has no stored answer, equal work counted once.
        limits: The limits of the run.
    """
    pilot = limits.pilot
    if pilot is None or not asks:
        return ""
    if asks <= pilot.items:
        return f"limits.pilot.items is {pilot.items}, and {asks} are to be asked: all are asked, without a pilot."
    after = _AFTER_PILOT[pilot.gate]
    return f"Pilot (limits.pilot): {pilot.items} of {asks} are asked first, {after}; none if that was decided before."


def _exceeds_budget(bound: CostBound, limits: Limits) -> bool:
    tokens = (bound.prompt_tokens or 0) + (bound.completion_tokens or 0)
    return (limits.budget_usd is not None and (bound.cost_usd or 0) > limits.budget_usd) or (
        limits.budget_tokens is not None and tokens > limits.budget_tokens
    )


def _rate_bound_seconds(
    asks: Sequence[WorkItem], executor: Executor, limits: Limits, tokens: int | None
) -> tuple[float, str]:
    """Return the seconds that rate limits impose on the model that is asked most, and the limit that does."""
    # Each model has rate limits of its own, so the model that is asked most takes longest.
    names = {each.brief.model: executor_name(executor_for(each.brief, executor)) for each in asks}
    most = max(Counter(names[each.brief.model] for each in asks).values(), default=0)
    rates = {
        "requests_per_minute": (most, limits.requests_per_minute),
        "tokens_per_minute": ((tokens or 0) * most / max(len(asks), 1), limits.tokens_per_minute),
    }
    seconds = {name: 60 * amount / rate for name, (amount, rate) in rates.items() if rate}
    slowest = max(seconds, key=lambda name: seconds[name], default="")
    return seconds.get(slowest, 0.0), f"time bound by limits.{slowest}"


def _read_error_note(blobs: LenientBlobStore) -> str:
    """Return how many records can't be read, and why the first of them can't; empty if all can."""
    return (
        f"unreadable records: {len(blobs.read_errors)}, the first: {blobs.read_errors[0]}" if blobs.read_errors else ""
    )


def _seconds_each(
    stored: Sequence[Answer], completion: int | None, asks: int, most_s: float | None
) -> tuple[float, str]:
    """Return the seconds of one ask, and the basis of that; for programs without measurements, their time limit."""
    # 1. Measured times of stored answers.
    last = [answer.attempts[-1] for answer in stored if answer.attempts]
    measured = [attempt.seconds for attempt in last if attempt.seconds or attempt.started]  # in a batch: neither
    if measured:
        return median(measured), f"time as measured for {len(measured)} stored answers"
    # 2. A program's time limit.
    if most_s is not None:
        return most_s, f"time at most: {most_s:g} s a run, by its time limit"
    # 3. An assumed speed.
    each = (completion or 0) / asks if asks else 0.0
    return ASSUMED_LATENCY_S + each / ASSUMED_TOKENS_PER_S, (
        f"time assumed: {ASSUMED_LATENCY_S:g} s a call and {ASSUMED_TOKENS_PER_S:g} tokens a second"
    )


def _advise(asks: int, in_turn: float) -> tuple[Literal["nothing-to-ask", "not-worth-fanning-out", "fan-out"], str]:
    if not asks:
        return "nothing-to-ask", "Nothing to ask: every answer is stored."
    if asks == 1 or in_turn < WORTHWHILE_S:
        return "not-worth-fanning-out", (
            f"Not worth fanning out: {count_noun(asks, 'ask')}, about {in_turn:g} s one after another."
        )
    return "fan-out", f"Fan out: {asks} asks would take about {in_turn:g} s one after another."


_REST = "what a cap doesn't hold is skipped, and the next run goes on there"


def with_notes(plan: Plan, executor: Executor, limits: Limits) -> Plan:
    """Return a plan with warnings about what its job's caps will stop, and about other limits.

    Args:
        plan: The plan, including the integrator's share.
        executor: The executor of the work.
        limits: The limits of the run.
    """
    notes = (
        *_agent_notes(plan, executor, limits),
        *_cap_notes(plan, limits),
        *_batch_notes(plan, executor),
        *_flex_notes(plan, executor, limits),
        *_task_run_notes(plan, limits),
    )
    return plan.model_copy(update={"notes": notes})


def _agent_notes(plan: Plan, executor: Executor, limits: Limits) -> Iterator[str]:
    """Yield the runs of a coding agent, and the upper bound of their cost: nothing else is known in advance."""
    if not isinstance(executor, CodingAgent) or not plan.to_ask:
        return
    runs = "1 run" if plan.to_ask == 1 else f"{plan.to_ask} runs, {limits.concurrency} at once"
    description = f"{executor.name}: {runs} of {limits.timeout_s:g} s at most"
    if executor.max_usd is None:
        yield f"{description}; nothing bounds what a run costs: set max_usd."
        return
    most = executor.max_usd * plan.to_ask
    yield f"{description}, and of {executor.max_usd:g} USD: {most:g} USD in all, retries and re-asks apart."
    if limits.budget_usd and limits.budget_usd < most:
        yield f"limits.budget_usd is {limits.budget_usd:g}, which may be less than that takes: {_REST}."


def _cap_notes(plan: Plan, limits: Limits) -> Iterator[str]:
    """Yield a warning for each cap that the plan exceeds."""
    tokens = None if plan.prompt_tokens is None else plan.prompt_tokens + (plan.completion_tokens or 0)
    caps = (
        ("requests", limits.budget_requests, plan.to_ask, f"{plan.to_ask} asks"),
        ("tokens", limits.budget_tokens, tokens, f"about {tokens} tokens"),
        ("usd", limits.budget_usd, plan.cost_usd, f"about {plan.cost_usd} USD"),
    )
    for key, cap, planned, amount in caps:
        if cap is None or not plan.to_ask:
            continue
        if cap == 0:
            yield f"limits.budget_{key} is 0, so nothing is asked; raise it, or leave it out."
        elif planned is not None and planned > cap:
            yield f"limits.budget_{key} is {cap}, and {amount} are planned: {_REST}."


def _batch_notes(plan: Plan, executor: Executor) -> Iterator[str]:
    """Yield what a batch leaves to be asked live, and by which models."""
    if not isinstance(executor, LLM) or executor.mode != "batch" or not plan.to_ask:
        return
    live = [f"executor.fallbacks ({', '.join(executor.fallbacks)}) are asked"] if executor.fallbacks else []
    live += [f"executor.idle_s ({executor.idle_s:g}) holds"] if executor.idle_s is not None else []
    only = f" {' and '.join(live)} only there." if live else ""
    yield f"mode: batch: within a day, whatever the times above; what fails in a batch is asked live.{only}"


def _flex_notes(plan: Plan, executor: Executor, limits: Limits) -> Iterator[str]:
    """Yield what the flex tier means for the time, and for calls that it refuses."""
    if not isinstance(executor, LLM) or executor.mode != FLEX or not plan.to_ask:
        return
    yield (
        f"mode: flex: a call may take up to {limits.timeout_s:g} s, whatever the times above. While the tier has no "
        f"capacity, calls wait for up to {limits.wait_s:g} s; what it still refuses has failed: run the job again, or "
        "with mode: live."
    )
    if executor.idle_s is not None:
        yield f"executor.idle_s is {executor.idle_s:g}, which ends a call that is silent for so long; leave it out."
    if limits.timeout_s < FLEX_TIMEOUT_S:
        yield f"limits.timeout_s is {limits.timeout_s:g}; OpenAI recommends {FLEX_TIMEOUT_S:g} for mode: flex."


def _task_run_notes(plan: Plan, limits: Limits) -> Iterator[str]:
    """Yield a warning if there are more task runs than Prefect's server can queue the records of."""
    task_runs = math.ceil(plan.to_ask / limits.shard) if limits.shard else 0
    if task_runs > MAX_RECORDED:
        yield (
            f"limits.shard is {limits.shard}, which makes {task_runs:,} task runs: Prefect's server may drop records "
            "of some of them; leave it empty."
        )


def parse_deadline(text: str) -> float:
    """Return the seconds of a duration such as `2h`.

    Raises:
        JobError: If it is none, or longer than a year.

    Example:
        >>> parse_deadline("2h"), parse_deadline("1.5 min")
        (7200.0, 90.0)
    """
    found = _DURATION.fullmatch(str(text).strip())
    seconds = float(found[1]) * _UNITS["min" if found[2] == "m" else found[2]] if found else 0.0
    if not 0 < seconds <= MAX_DEADLINE_S:
        raise JobError(f"deadline: {str(text)[:40]!r} is no duration: write a number and s, min, h or d, such as '2h'.")
    return seconds


def _compare_modes(asks: Sequence[WorkItem], executor: Executor, limits: Limits, plan: Plan) -> tuple[PlannedMode, ...]:
    """Return what some asks cost in each mode of their executor, in the order of `Mode`.

    None where there is nothing to compare: where a price is unknown or nothing costs anything, for a cascade,
    fallbacks, a web search and a service tier in `params`, for briefs that name models of their own, and for a model
    that has one mode.

    Args:
        asks: What is asked.
        executor: The executor.
        limits: The limits of the run.
        plan: The plan of the asks, as the executor sends them.
    """
    if not asks or not isinstance(executor, LLM) or executor.fallback_chain != (executor,):
        return ()
    if executor.search_options is not None or (executor.mode != FLEX and executor.price_tier != LIVE):
        return ()
    if not plan.cost_usd or any(each.brief.model for each in asks):
        return ()
    found = [
        PlannedMode(
            mode=variant.mode,
            cost_usd=_cost(asks, variant, price, plan),
            seconds=_seconds(len(asks), variant, limits, plan),
        )
        for variant in _variants(executor)
        if (price := variant.price())
    ]
    return tuple(found) if len(found) > 1 else ()


def _variants(executor: LLM) -> Iterator[LLM]:
    """Yield the executor in each mode that its models have."""
    yield executor.model_copy(update={"mode": "live"})
    flex = executor.model_copy(update={"mode": "flex"})
    # Whether a server with a price of its own has other modes is for its owner to say.
    is_listed = executor.usd_per_million is None
    if (is_listed or executor.mode == FLEX) and executor.rounds == 1:
        yield flex
    if (is_listed or executor.mode == "batch") and executor.model.startswith(BATCH_PROVIDER):
        yield executor.model_copy(update={"mode": "batch"})


def _cost(asks: Sequence[WorkItem], variant: LLM, price: Price, plan: Plan) -> float:
    _, saved = _estimate_cached(asks, variant)
    tokens = plan.prompt_tokens or 0, plan.completion_tokens or 0
    return round(tokens[0] * price[0] + tokens[1] * price[1] - saved, 6)


def _seconds(count: int, variant: LLM, limits: Limits, plan: Plan) -> float:
    if variant.mode == "batch":
        return BATCH_S * variant.rounds
    if variant.mode == "flex":
        return max(flex_timeout_s(limits) * math.ceil(count / limits.concurrency), plan.seconds_in_parallel)
    return plan.seconds_in_parallel


def describe_modes(modes: Sequence[PlannedMode]) -> str:
    """Return a line on modes side by side; empty where there are none.

    Example:
        >>> describe_modes([PlannedMode(mode="live", cost_usd=1, seconds=9), PlannedMode(mode="batch", cost_usd=0.5,
        ...     seconds=86400)])
        'By mode: live $1.0000, about 9 s; batch $0.5000, up to 1 d.'
    """
    if not modes:
        return ""
    parts = [
        f"{each.mode} ${each.cost_usd:.4f}, {'about' if each.mode == 'live' else 'up to'} {format_span(each.seconds)}"
        for each in modes
    ]
    return f"By mode: {'; '.join(parts)}."


def format_span(seconds: float) -> str:
    """Return a duration in its largest unit that leaves at least two of it, or a whole one.

    Example:
        >>> format_span(9.44), format_span(5400), format_span(7200), format_span(86400)
        ('9.4 s', '90 min', '2 h', '1 d')
    """
    fitting = [(unit, size) for unit, size in _UNITS.items() if seconds >= 2 * size or seconds == size]
    unit, size = fitting[-1] if fitting else ("s", 1.0)
    return f"{round(seconds / size, 1):g} {unit}"


def with_deadline(plan: Plan, deadline_s: float, mode: str = "live") -> Plan:
    """Return a plan with a recommendation by a deadline: whether to fan out, and the cheapest mode that meets it.

    Args:
        plan: The plan.
        deadline_s: The deadline, in seconds from the start.
        mode: The mode of the job's executor.
    """
    if not plan.to_ask:
        return plan.model_copy(update={"deadline_s": deadline_s})
    deadline = format_span(deadline_s)
    in_turn, parallel = format_span(plan.seconds_in_turn), format_span(plan.seconds_in_parallel)
    recommendation = plan.recommendation
    if plan.seconds_in_turn <= deadline_s:
        recommendation = "not-worth-fanning-out"
        advice = f"No fan-out is needed: one after another takes about {in_turn}, within the deadline of {deadline}."
    elif plan.seconds_in_parallel <= deadline_s:
        recommendation = "fan-out"
        advice = (
            f"Fan out: in parallel takes about {parallel}, within the deadline of {deadline}; one after another takes "
            f"about {in_turn}."
        )
    else:
        advice = (
            f"The deadline of {deadline} is missed: in parallel takes about {parallel}. Ask less, or, where they "
            "bound that, raise limits.concurrency or the rate limits."
        )
    if any(each.mode == mode != "live" and each.seconds > deadline_s for each in plan.modes):
        advice += f" As it is written (mode: {mode}), the job may take longer."
    in_time = [each for each in plan.modes if each.seconds <= deadline_s]
    if in_time:
        cheapest = min(in_time, key=lambda each: each.cost_usd)
        advice += f" Cheapest within the deadline, in parallel: mode: {cheapest.mode}."
    update = {"deadline_s": deadline_s, "recommendation": recommendation, "advice": advice}
    return plan.model_copy(update=update)
