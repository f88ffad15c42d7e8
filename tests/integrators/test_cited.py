"""The audit of what a model wrote: whatever is changed after the fact is found."""

from __future__ import annotations

import random
import re
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from prefect_dispatch.integrators.audit import audit
from prefect_dispatch.integrators.base import unanswered
from prefect_dispatch.integrators.synthesize.answer_index import number_answers
from prefect_dispatch.integrators.synthesize.output_format import MARK, render_document
from prefect_dispatch.integrators.synthesize.synthesize import Synthesize
from prefect_dispatch.models.ledger import FieldRow, Flag, LedgerRow, Merge, Ref
from tests.integrators.said import miss, say
from tests.integrators.writers import Desk, scripted, sloppy

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydantic import JsonValue

    from prefect_dispatch.models.outcome import Outcome

PLAIN = Synthesize(instructions="Sum up.", reasks=0)
SHAPED = Synthesize(instructions="Sum up.", output={"type": "object"}, reasks=0)


def days(seed: int) -> list[Outcome]:
    """Return answers that differ in their numbers, and one that is missing."""
    rng = random.Random(seed)
    return [
        say(f"item-{at}", f"the period is {days} days") for at, days in enumerate(rng.sample(range(30, 999), 9))
    ] + [miss("gone")]


def text_of(merge: Merge, value: str) -> Merge:
    """Return a merge with another text, its field row in step with it."""
    rows = tuple(row.model_copy(update={"winner": value}) for row in merge.fields)
    return merge.model_copy(update={"value": value, "fields": rows})


def _prose(merge: Merge) -> tuple[str, str]:
    value = str(merge.value)
    at = min(at for mark in ("## Also reported", "No answer for") if (at := value.find(mark)) >= 0)
    return value[:at], value[at:]


def change_a_number(rng: random.Random, merge: Merge) -> Merge:
    """Put another number in the place of one that isn't marked."""
    head, tail = _prose(merge)
    found = [match for match in re.finditer(r"is (\d+) days", head) if match[1]]
    one = rng.choice(found)
    return text_of(merge, f"{head[: one.start(1)]}{int(one[1]) + rng.randint(1, 20000)}{head[one.end(1) :]}{tail}")


def swap_two_citations(rng: random.Random, merge: Merge) -> Merge:
    """Have two sentences cite each other's answer."""
    head, tail = _prose(merge)
    one, other = sorted(rng.sample(list(re.finditer(r"(?<=days )\[(\d)\]", head)), 2), key=lambda match: match.start())
    swapped = head[: one.start()] + other[0] + head[one.end() : other.start()] + one[0] + head[other.end() :]
    return text_of(merge, swapped + tail)


def drop_a_sentence(rng: random.Random, merge: Merge) -> Merge:
    """Take out a line that cites an answer, and the answer from the sources."""
    head, tail = _prose(merge)
    lines = [line for line in head.split("\n") if re.search(r"days \[\d\]", line) and MARK not in line]
    assume(bool(lines))
    return text_of(merge, head.replace(rng.choice(lines), "") + tail)


def drop_a_citation(rng: random.Random, merge: Merge) -> Merge:
    """Leave the words and take the citation."""
    head, tail = _prose(merge)
    one = rng.choice(list(re.finditer(r" \[\d\]", head)))
    return text_of(merge, head[: one.start()] + head[one.end() :] + tail)


def cite_what_is_not_there(rng: random.Random, merge: Merge) -> Merge:
    """Cite an unknown answer."""
    head, tail = _prose(merge)
    return text_of(merge, head.replace("].", f"][{rng.randint(10, 999)}].", 1) + tail)


def add_a_sentence(rng: random.Random, merge: Merge) -> Merge:
    """Say something more."""
    head, tail = _prose(merge)
    return text_of(
        merge, head.rstrip() + rng.choice([" It is fine.", f" All take {rng.randint(1000, 9999)} [1]."]) + "\n\n" + tail
    )


def drop_a_flag(rng: random.Random, merge: Merge) -> Merge:
    """Forget a doubt."""
    assume(bool(merge.flags))
    gone = rng.randrange(len(merge.flags))
    return merge.model_copy(update={"flags": merge.flags[:gone] + merge.flags[gone + 1 :]})


def drop_a_mark(rng: random.Random, merge: Merge) -> Merge:
    """Take a mark out of the text."""
    places = [match.start() for match in re.finditer(re.escape(MARK), str(merge.value))]
    assume(bool(places))
    at = rng.choice(places)
    return text_of(merge, str(merge.value)[:at] + str(merge.value)[at + len(MARK) :])


def add_a_mark(rng: random.Random, merge: Merge) -> Merge:
    """Mark what isn't doubtful."""
    return text_of(merge, str(merge.value).replace(" days", f" days{MARK}", 1))


def drop_the_gap_sentence(rng: random.Random, merge: Merge) -> Merge:
    """Say nothing of what has no answer."""
    return text_of(merge, re.sub(r"No answer for .*\n\n", "", str(merge.value)))


def drop_a_source(rng: random.Random, merge: Merge) -> Merge:
    """Leave a line out of the list of sources."""
    return text_of(merge, re.sub(rf"\[{rng.randint(1, 9)}\] terms/item-\d  \n?", "", str(merge.value)))


def drop_what_is_also_reported(rng: random.Random, merge: Merge) -> Merge:
    """Leave out an answer that the text doesn't cite."""
    blocks = re.findall(r"\n\n\[\d\] terms/item-\d:\n    .*", str(merge.value))
    assume(bool(blocks))
    return text_of(merge, str(merge.value).replace(rng.choice(blocks), ""))


def change_what_is_also_reported(rng: random.Random, merge: Merge) -> Merge:
    """Bend an answer that the text doesn't cite."""
    changed = re.sub(r"(?m)^(    the period is )\d+", rf"\g<1>{rng.randint(1000, 9999)}", str(merge.value), count=1)
    assume(changed != merge.value)
    return text_of(merge, changed)


def name_other_sources(rng: random.Random, merge: Merge) -> Merge:
    """Have the text come from fewer answers than it cites."""
    [row] = merge.fields
    return merge.model_copy(update={"fields": (row.model_copy(update={"sources": row.sources[1:]}),)})


def change_the_rule(rng: random.Random, merge: Merge) -> Merge:
    """Have the text go by a rule that nobody looks into."""
    [row] = merge.fields
    return merge.model_copy(update={"fields": (row.model_copy(update={"rule": "own:words"}),)})


def drop_the_field_row(rng: random.Random, merge: Merge) -> Merge:
    """Leave the text untraced."""
    return merge.model_copy(update={"fields": ()})


TAMPERS = [
    change_a_number,
    swap_two_citations,
    drop_a_sentence,
    drop_a_citation,
    cite_what_is_not_there,
    add_a_sentence,
    drop_a_flag,
    drop_a_mark,
    add_a_mark,
    drop_the_gap_sentence,
    drop_a_source,
    drop_what_is_also_reported,
    change_what_is_also_reported,
    name_other_sources,
    change_the_rule,
    drop_the_field_row,
]


@pytest.mark.slow
@pytest.mark.parametrize("tamper", TAMPERS, ids=[tamper.__name__ for tamper in TAMPERS])
@given(seed=st.integers(0, 10**6))
@settings(deadline=None, max_examples=12)
def test_what_is_changed_afterwards_is_found(tamper: Callable[[random.Random, Merge], Merge], seed: int) -> None:
    """The audit alone finds it, without merging once more."""
    said = days(seed)
    merge = PLAIN.merge_asking([], said, Desk(scripted(sloppy(seed))))
    assert audit(merge, said, [], PLAIN) == ()
    changed = tamper(random.Random(seed), merge)
    assume(changed != merge)
    assert audit(changed, said, [], PLAIN) != ()


VALUE: dict[str, JsonValue] = {
    "value": {"title": "It is 45 days [1]. It is new.", "days": 45, "more": [77, True, None]},
    "sources": [{"path": "/days", "ids": [1]}, {"path": "/more/0", "ids": [1]}, {"path": "/more/1", "ids": [2]}],
}
SAID = [say("a", "45 days"), say("b", {"ok": True}), say("c", "c"), miss("d")]


def _value(merge: Merge, **parts: JsonValue) -> Merge:
    value: Any = merge.value
    return merge.model_copy(update={"value": {**value, **parts}})


CHANGES: dict[str, Callable[[Any], Merge]] = {
    "nothing-cited": lambda merge: _value(merge, cited={}),
    "cited-is-no-mapping": lambda merge: _value(merge, cited=5),
    "cited-is-no-list": lambda merge: _value(merge, cited={"/value/days": "1"}),
    "another-source": lambda merge: _value(merge, cited={**merge.value["cited"], "/value/days": [2]}),
    "unknown": lambda merge: _value(merge, cited={**merge.value["cited"], "/value/days": [1, 99]}),
    "cites-nothing": lambda merge: _value(merge, cited={**merge.value["cited"], "/value/none": [1]}),
    "no-names": lambda merge: _value(merge, sources={}),
    "not-reported": lambda merge: _value(merge, also_reported=[]),
    "no-doubts": lambda merge: _value(merge, unverified=[]),
    "no-gaps": lambda merge: _value(merge, gaps=[]),
    "more": lambda merge: _value(merge, more="said"),
    "a-flag-less": lambda merge: merge.model_copy(update={"flags": merge.flags[1:]}),
    "no-flags": lambda merge: merge.model_copy(update={"flags": ()}),
    "a-row-less": lambda merge: merge.model_copy(update={"fields": merge.fields[1:]}),
    "rows-less": lambda merge: merge.model_copy(update={"fields": merge.fields[:1]}),
    "another-value": lambda merge: _value(merge, value={**merge.value["value"], "days": 46}),
}


@pytest.mark.parametrize("tamper", CHANGES.values(), ids=CHANGES)
def test_a_changed_value_is_found(tamper: Callable[[Any], Merge]) -> None:
    """What stands beside a value is held to the same: sources, doubts, gaps, and what it leaves out."""
    merge = SHAPED.merge_asking([], SAID, Desk(scripted(lambda ask: VALUE)))
    assert audit(merge, SAID, [], SHAPED) == ()
    assert audit(tamper(merge), SAID, [], SHAPED) != ()


def own(prose: str, said: list[Outcome], also: tuple[int, ...] = (), *, path: str = "/summary") -> Merge:
    """Return what an integrator of the user's own may return, by the same rule."""
    sources = number_answers(said)
    text = render_document(prose, sources, also, said)
    cited = tuple(source.ref for source in sources if f"[{source.number}]" in prose)
    rows = [unanswered(o) or LedgerRow(brief=o.brief, item=o.item, disposition="merged") for o in said]
    return Merge(
        value={path[1:]: text},
        ledger=tuple(rows),
        fields=(FieldRow(path=path, winner=text, rule="cited", sources=cited),),
    )


def test_the_users_own_integrator_is_held_to_it() -> None:
    """A row with the rule `cited` is checked, whoever returns it, and wherever in a value it stands."""
    said = [say("a", "45 days"), say("b", "7 days"), miss("c")]
    assert audit(own("45 days [1], 7 days [2].", said), said, []) == ()
    assert audit(own("45 days [1].", said, (2,)), said, []) == ()
    assert [found.law for found in audit(own("45 days [1].", said), said, [])] == ["recall"]
    assert [found.law for found in audit(own("46 days [1].", said, (2,)), said, [])] == ["precision"]
    whole = own("45 days [1].", said, (2,))
    row = whole.fields[0]
    bare = whole.model_copy(
        update={"value": {"summary": "45 days [1]."}, "fields": (row.model_copy(update={"winner": "45 days [1]."}),)}
    )
    assert {found.law for found in audit(bare, said, [])} == {"conservation", "recall"}


def test_flags_of_other_places_are_left_alone() -> None:
    """Whoever flags something else in the same merge breaks nothing."""
    said = [say("a", "45 days")]
    other = Flag(path="/count", kind="conflict", text="2", message="Records disagree.")
    merge = own("45 days [1].", said).model_copy(update={"flags": (other,)})
    assert audit(merge, said, []) == ()


def test_a_cited_field_that_is_no_text() -> None:
    """Only text can cite, and only what is there can be looked into."""
    said = [say("a", 5)]
    ledger = (LedgerRow(brief="terms", item="a", disposition="merged"),)
    row = FieldRow(path="/n", winner=5, rule="cited", sources=(Ref(brief="terms", item="a"),))
    merge = Merge(value={"n": 5}, ledger=ledger, fields=(row,))
    assert "its rule is 'cited', but it is no text." in {found.message for found in audit(merge, said, [])}
    gone = merge.model_copy(update={"fields": (row.model_copy(update={"path": "/m"}),)})
    assert {found.law for found in audit(gone, said, [])} == {"conservation", "precision", "recall"}
