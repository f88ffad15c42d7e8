"""Reports of any size, made without a run."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from random import Random
from typing import TYPE_CHECKING

from prefect_dispatch.models.brief import Brief
from prefect_dispatch.models.item import Item
from prefect_dispatch.models.ledger import (
    FieldRow,
    Flag,
    Gap,
    LedgerRow,
    Loser,
    Proposal,
    Ref,
    Requirement,
    RequirementPlace,
    Table,
)
from prefect_dispatch.models.outcome import Attempt, Failure, Outcome, Rejection, Usage
from prefect_dispatch.models.report import AnswerIdentity, Change, Changes, Report, Spending

if TYPE_CHECKING:
    from pydantic import JsonValue

START = datetime(2026, 3, 2, 9, 30, tzinfo=timezone.utc)
BRIEF = Brief(
    name="licence-terms",
    scope="One software licence text.",
    instructions="Say what the licence {title} allows and demands.",
    constraints=("Judge by the text alone.", "Quote no more than ten words."),
    output={
        "type": "object",
        "properties": {"name": {"type": "string"}, "year": {"type": "integer"}},
        "required": ["name", "year"],
    },
)
MODELS = ("openai/gpt-5-mini", "anthropic/claude-haiku-4-5")
KINDS = ("timeout", "invalid_output", "refused", "context_length")


def made(count: int, *, text: str = "", seed: int = 1) -> tuple[Report, list[Brief], list[Item]]:
    """Return a report, its briefs and its items.

    Args:
        count: How many items.
        text: What each item, answer and error says besides.
        seed: Of what is chosen at random.
    """
    chance = Random(seed)
    items = [Item(key=f"texts/{n:05}.txt{text}", value=_value(n, text)) for n in range(count)]
    clock = [0.0] * 8
    outcomes = [_outcome(n, item, chance, clock, text) for n, item in enumerate(items)]
    refs = [Ref.of(outcome) for outcome in outcomes]
    succeeded = [ref for ref, outcome in zip(refs, outcomes, strict=True) if outcome.status == "succeeded"]
    report = Report(
        status="gaps" if len(succeeded) < count else "complete",
        message=f"{len(succeeded)} of {count} answered.{text}",
        value={"records": [{"name": f"Licence {n}", "year": 1990 + n % 30} for n in range(min(count, 500))]},
        ledger=tuple(_row(n, outcome, refs, text) for n, outcome in enumerate(outcomes)),
        fields=tuple(_field(n, ref, succeeded, text) for n, ref in enumerate(succeeded)),
        gaps=tuple(
            Gap(brief=outcome.brief, item=outcome.item, status="failed", error=outcome.error)
            for outcome in outcomes
            if outcome.error
        ),
        requirements=(
            Requirement(
                brief=BRIEF.name,
                kind="check",
                text=f"max_words: 8{text}",
                verdict="violated",
                checked=9,
                violations=2,
                places=(RequirementPlace(path="/records/0", sources=(refs[0],), message=f"It has 9 words.{text}"),),
            ),
            Requirement(
                brief="",
                kind="constraint",
                text="Judge by the text alone.",
                verdict="not_checkable",
                note=f"No judge.{text}",
            ),
        ),
        rules=f"Records are the same if they have the same name. `family` is what most say.{text}",
        proposals=(
            Proposal(
                left={"name": f"MIT{text}"},
                right={"name": "MIT License"},
                score=0.9123,
                why=f"The names are alike.{text}",
                left_sources=(refs[0],),
                right_sources=(refs[-1],),
            ),
        ),
        flags=(
            Flag(
                path="/text",
                kind="number",
                text=f"42{text}",
                message=f"42 stands in none of the answers.{text}",
                sources=(refs[0],),
            ),
        ),
        tables=(
            Table(
                name="trust",
                title=f"How far each brief is trusted{text}",
                rows=tuple({"brief": f"b{n}{text}", "weight": n / 40, "agrees": n} for n in range(40)),
                note="Between 0 and 1.",
            ),
        ),
        changes=_changes(succeeded),
        usage=Spending.of(outcomes),
        plan={
            "stored": 0,
            "shared": 0,
            "to_ask": count,
            "prompt_tokens": count * 900,
            "completion_tokens": count * 80,
            "cost_usd": 0.003 * count,
            "seconds_in_parallel": 0.4 * count,
            "basis": "all prompts counted",
            "advice": f"Fan out: {count} asks would take a while one after another.",
        },
        run={
            "started": START.isoformat(),
            "seconds": round(max(clock), 3) + 1,
            "waited_s": 3.5,
            "waits": 2,
            "flow_run": {"id": "0", "name": f"quiet-otter{text}"},
            "executor": {"kind": "llm", "model": MODELS[0]},
            "integrator": {"kind": "merge_records"},
            "limits": {"concurrency": 8},
            "fields_traced": True,
            "versions": {"prefect": "3.8.8"},
            "since": {"started": START.isoformat(), "flow_run": {"id": "1", "name": "old-lynx"}},
        },
        outcomes=tuple(outcomes),
    )
    return report, [BRIEF], items


def _value(n: int, text: str) -> JsonValue:
    words = f"Permission is hereby granted, free of charge, to any person ({n}). " * 12
    return {"title": f"Licence {n}{text}", "text": words + text}


def _outcome(n: int, item: Item, chance: Random, clock: list[float], text: str) -> Outcome:
    failed, again = n % 17 == 5, n % 11 == 3
    slot = clock.index(min(clock))
    attempts = [_attempt(chance, clock, slot, error=f"timeout: No answer.{text}")] if again else []
    rejection = Rejection(text=f"Forty-two.{text}", problems=(f"The answer is not JSON: {text}",))
    rejections = (rejection,) if n % 7 == 2 else ()
    kind = KINDS[n % len(KINDS)]
    error = Failure(kind=kind, message=f"Nothing came of it.{text}") if failed else None
    attempts.append(_attempt(chance, clock, slot, error=f"{kind}: no{text}" if failed else None, rejections=rejections))
    return Outcome(
        brief=BRIEF.name,
        item=item.key,
        status="failed" if failed else "succeeded",
        value=None if failed else {"name": f"Licence {n}", "year": 1990 + n % 30, "note": text},
        error=error,
        model="" if failed else MODELS[n % 2],
        attempts=tuple(attempts),
        origin="stored" if n % 13 == 1 else "asked",
        fingerprint=f"{n:064x}",
    )


def _attempt(
    chance: Random, clock: list[float], slot: int, *, error: str | None, rejections: tuple[Rejection, ...] = ()
) -> Attempt:
    took = round(chance.uniform(0.4, 3.0), 3)
    begun = clock[slot]
    clock[slot] += took
    prompt = chance.randrange(600, 1200)
    return Attempt(
        usage=Usage(requests=1 + len(rejections), prompt_tokens=prompt, completion_tokens=80, cost_usd=prompt * 2e-6),
        reasks=0 if error else len(rejections),
        rejections=rejections,
        started=START + timedelta(seconds=begun),
        seconds=took,
        error=error,
    )


def _row(n: int, outcome: Outcome, refs: list[Ref], text: str) -> LedgerRow:
    if outcome.error:
        return LedgerRow(brief=outcome.brief, item=outcome.item, disposition="failed", reason=outcome.error.kind)
    duplicate = n % 5 == 4
    return LedgerRow(
        brief=outcome.brief,
        item=outcome.item,
        disposition="duplicate_of" if duplicate else "merged",
        by=refs[n - 1] if duplicate else None,
        reason=f"the same name{text}" if duplicate else "",
    )


def _field(n: int, ref: Ref, succeeded: list[Ref], text: str) -> FieldRow:
    loser = Loser(value=f"copyleft{text}", sources=(succeeded[n - 1],))
    return FieldRow(
        path=f"/records/{n}/family",
        winner=f"permissive{text}",
        losers=(loser,) if n % 20 == 3 else (),
        rule="majority",
        sources=(ref,),
    )


def _changes(succeeded: list[Ref]) -> Changes:
    said = AnswerIdentity(fingerprint="", digest="")
    changed = [Change(brief=ref.brief, item=ref.item, before=said, after=said) for ref in succeeded[1:4]]
    gone = Ref(brief=BRIEF.name, item="texts/gone.txt")
    return Changes(earlier="found", new=tuple(succeeded[5:7]), gone=(gone,), changed=tuple(changed))
