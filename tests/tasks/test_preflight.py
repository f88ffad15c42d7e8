"""Is the work independent? Findings, locks and stages."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_dispatch.errors import BriefError, DependenceError
from prefect_dispatch.models.brief import Brief
from prefect_dispatch.models.checks import MustMention
from prefect_dispatch.models.globs import Glob, overlap
from prefect_dispatch.models.item import Item
from prefect_dispatch.models.ledger import Ref
from prefect_dispatch.tasks.preflight import MAX_FINDINGS, Independence, preflight, require_independence

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from pydantic import JsonValue

ITEMS = [Item(key="b", value={"topic": "x"}), Item(key="a", value={"topic": "y"})]


def brief(
    name: str = "one",
    instructions: str = "Work.",
    *,
    constraints: Sequence[str] = (),
    reads: Sequence[str] = (),
    writes: Sequence[str] = (),
    resources: Sequence[str] = (),
    terms: Sequence[str] = (),
) -> Brief:
    """A brief that says only what a test is about."""
    return Brief(
        name=name,
        instructions=instructions,
        constraints=tuple(constraints),
        reads=tuple(reads),
        writes=tuple(writes),
        resources=tuple(resources),
        checks=(MustMention(terms=tuple(terms)),) if terms else (),
    )


def items(*keys: str, value: JsonValue = None) -> list[Item]:
    """Items that differ in their keys alone."""
    return [Item(key=key, value=value) for key in keys]


def shown(found: Independence) -> list[tuple[str, str, str, str]]:
    """Findings without their messages."""
    return [(each.kind, str(each.first), str(each.second), each.on) for each in found.findings]


@pytest.mark.parametrize(
    ("briefs", "inputs", "findings"),
    [
        pytest.param([brief()], ITEMS, [], id="nothing-declared"),
        pytest.param([brief(writes=["out/{key}.md"])], ITEMS, [], id="a-path-for-each"),
        pytest.param([brief(writes=["n.md"])], ITEMS, [("write", "one/a", "one/b", "n.md")], id="one-path-for-all"),
        pytest.param(
            [brief("two", writes=["out"]), brief(writes=["out/*.md"])],
            items("a"),
            [("write", "one/a", "two/a", "out and out/*.md")],
            id="two-briefs-one-folder",
        ),
        pytest.param([brief(writes=["out", "out/x", "out"])], items("a"), [], id="the-same-work-may-name-a-file-twice"),
        pytest.param(
            [brief(writes=["{topic}.md"])],
            [Item(key="1", value={"topic": "x"}), Item(key="2", value={"topic": "./x"})],
            [("write", "one/1", "one/2", "x.md")],
            id="fields-that-lead-to-one-path",
        ),
        pytest.param(
            [brief("writer", writes=["out/{key}"]), brief("reader", reads=["out/*.md"])],
            items("a.md"),
            [("read", "writer/a.md", "reader/a.md", "out/*.md and out/a.md")],
            id="a-read-of-a-write",
        ),
        pytest.param([brief(reads=["in/**"])], ITEMS, [], id="reads-are-shared"),
        pytest.param([brief(reads=["{key}"], writes=["{key}"])], ITEMS, [], id="reading-what-one-writes-oneself"),
        pytest.param(
            [brief(writes=["app/{key}"])], items("[id].ts", "[uid].ts", "i.ts"), [], id="brackets-in-a-key-are-text"
        ),
        pytest.param(
            [brief(resources=["port-{topic}", "gpu"])], ITEMS, [("resource", "one/a", "one/b", "gpu")], id="a-resource"
        ),
        pytest.param(
            [brief("outline"), brief("text", "Write by {outline.title}.")],
            ITEMS,
            [("output", "outline/a", "text/a", "{outline.title}")],
            id="a-placeholder-of-another-brief",
        ),
        pytest.param(
            [brief("topic"), brief("text", "Write about {topic}.")], ITEMS, [], id="a-field-named-like-a-brief"
        ),
        pytest.param(
            [brief("outline"), brief("text", constraints=["Keep to the  Output of\nthe brief `outline`."])],
            ITEMS,
            [("output", "outline/a", "text/a", "Output of the brief `outline")],
            id="the-output-of-another",
        ),
        pytest.param(
            [brief("fact-check"), brief("text", "Use fact-check's findings, all of fact-check's results.")],
            ITEMS,
            [("output", "fact-check/a", "text/a", "fact-check's findings")],
            id="anothers-findings",
        ),
        pytest.param(
            [brief("test"), brief("text", "Read the results of tests and of text's results; output {{test}}.")],
            ITEMS,
            [],
            id="words-that-only-look-alike",
        ),
        pytest.param(
            [brief(), brief("two")],
            [
                Item(key="b", value={"depends_on": ["a", "b", 1, "c"]}),
                Item(key="a", value={"needs": "d"}),
                Item(key="d", value=["needs", "a"]),
            ],
            [("item", "one/a", "one/b", "depends_on"), ("item", "one/d", "one/a", "needs")],
            id="an-item-that-needs-another",
        ),
        pytest.param([brief()], items("b", "a", "b"), [("key", "one/b", "one/b", "b")], id="a-key-twice"),
        pytest.param([brief(), brief()], ITEMS, [("name", "one/a", "one/a", "one")], id="a-name-twice"),
        pytest.param([brief(), brief()], [], [("name", "one/", "one/", "one")], id="a-name-twice-without-items"),
        pytest.param([], items("a", "a"), [("key", "/a", "/a", "a")], id="a-key-twice-without-briefs"),
        pytest.param([brief("b", "Read a's output."), brief("a")], [], [], id="no-items"),
        pytest.param([], [Item(key="a", value={"needs": "b"}), *items("b")], [], id="no-briefs"),
    ],
)
def test_findings(briefs: list[Brief], inputs: list[Item], findings: list[tuple[str, str, str, str]]) -> None:
    """Each kind of dependence is named as a pair, and what is independent is not."""
    found = preflight(briefs, inputs)
    assert shown(found) == findings
    assert found.more == 0


@pytest.mark.parametrize(
    ("name", "text"),
    [
        pytest.param("a", "Explain the result of a merger.", id="an-article"),
        pytest.param("text", "Repeat the output of text verbatim.", id="a-noun"),
        pytest.param("name", "The answer of name fields must be short.", id="an-attribute"),
        pytest.param("summary", "Judge the summary's findings.", id="a-possessive"),
    ],
)
def test_ordinary_words_are_no_briefs(name: str, text: str) -> None:
    """A brief that is called by an ordinary word doesn't forbid the word."""
    assert preflight([brief(name), brief("other", text)], ITEMS).findings == ()


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("Use the output of outline to write.", id="output-of"),
        pytest.param("Take the results from 'outline'.", id="results-from"),
        pytest.param("Weigh the answers of brief outline.", id="answers-of-brief"),
        pytest.param("See Outline\u2019s answer.", id="curly-apostrophe"),
    ],
)
def test_words_about_another_brief(text: str) -> None:
    """Ways to speak of another brief's output are found."""
    assert [each.kind for each in preflight([brief("outline"), brief("text", text)], ITEMS).findings] == ["output"]


@pytest.mark.parametrize(
    ("one", "message"),
    [
        pytest.param(
            brief(instructions="About {subject}."),
            r"Brief 'one': Placeholder \{subject\} has no value in item 'a'; the item offers 'key', 'topic'",
            id="unknown-field",
        ),
        pytest.param(brief(instructions="{one.title}"), r"Placeholder \{one.title\}", id="its-own-name"),
        pytest.param(brief(terms=["{subject}"]), r"Placeholder \{subject\}", id="in-a-check"),
        pytest.param(brief(writes=["src/{a,b}.py"]), r"the glob 'src/\{a,b\}.py' uses \{a,b\}", id="alternatives"),
    ],
)
def test_wrong_briefs(one: Brief, message: str) -> None:
    """A brief that can't be put to an item is an error before anything is spent."""
    with pytest.raises(BriefError, match=message):
        preflight([one, brief("other")], ITEMS)


def test_braces_in_a_key_are_text() -> None:
    """What an item's key holds is never read as part of a glob."""
    assert preflight([brief(writes=["{key}"])], items("{a,b}", "a", "**", "*")).findings == ()


def test_equal_content_is_no_finding() -> None:
    """Equal items under different keys are asked once and shared."""
    assert preflight([brief()], items("a", "b", value="same")) == Independence()


def test_one_after_another() -> None:
    """Work that writes one file holds one lock; work that reads it comes in a later stage."""
    briefs = [brief("writer", writes=["notes.md"]), brief("reader", reads=["*.md"]), brief("last", reads=["x"])]
    found = preflight([*briefs, brief("middle", reads=["notes.md"], writes=["x"])], items("a"))
    assert found.locks == {}
    assert {str(ref): stage for ref, stage in found.stages.items()} == {"reader/a": 1, "middle/a": 1, "last/a": 2}
    found = preflight(briefs, items("a", "b"))
    writers = [Ref(brief="writer", item=key) for key in "ab"]
    assert found.locks == dict.fromkeys(writers, frozenset({"write notes.md"}))


def test_a_ring_is_locked() -> None:
    """Work that reads what the other writes, both ways, runs one after another in any order."""
    found = preflight([brief(reads=["src/**"], writes=["src/{key}"])], items("a", "b"))
    assert found.locks == dict.fromkeys((Ref(brief="one", item=key) for key in "ab"), frozenset({"ring one/a"}))
    assert found.stages == {}


PATTERN = st.sampled_from(["a", "a/b", "a/*", "*/b", "**/c", "c", "{key}", "a/{key}", "d/e", "d"])
BRIEFS = st.lists(
    st.builds(
        brief,
        st.sampled_from(["one", "two", "three"]),
        reads=st.lists(PATTERN, max_size=2),
        writes=st.lists(PATTERN, max_size=2),
        resources=st.lists(st.sampled_from(["gpu", "{key}"]), max_size=1),
    ),
    max_size=3,
    unique_by=lambda each: each.name,
)
INPUTS = st.lists(st.sampled_from("abc"), max_size=3, unique=True).map(lambda keys: items(*keys))


def _meet(one: Sequence[str], other: Sequence[str]) -> bool:
    return any(overlap(Glob.parse(a), Glob.parse(b)) for a in one for b in other)


@given(briefs=BRIEFS, inputs=INPUTS)
def test_what_collides_never_runs_at_once(briefs: list[Brief], inputs: list[Item]) -> None:
    """Any two pieces of work that collide share a lock or have different stages, a writer before its readers."""
    found = preflight(briefs, inputs)
    work = [
        (Ref(brief=each.name, item=item.key), each.fill_placeholders(item), item.key)
        for each in briefs
        for item in inputs
    ]
    collisions = 0
    for (one, first, _), (other, second, _) in itertools.permutations(work, 2):
        apart = found.locks.get(one, frozenset()) & found.locks.get(other, frozenset())
        stages = found.stages.get(one, 0), found.stages.get(other, 0)
        if _meet(first.writes, second.writes) or set(first.resources) & set(second.resources):
            assert apart or stages[0] != stages[1]
            collisions += 1
        if _meet(first.writes, second.reads):
            assert apart or stages[0] < stages[1]
            collisions += 1
    assert bool(collisions) == bool(found.findings) == bool(found.locks or found.stages)


@given(briefs=BRIEFS, inputs=INPUTS, random=st.randoms(use_true_random=False))
def test_order_does_not_matter(briefs: list[Brief], inputs: list[Item], random: random.Random) -> None:
    """Shuffled briefs and items give the same findings, locks and stages, byte for byte."""
    mixed_briefs, mixed_items = random.sample(briefs, len(briefs)), random.sample(inputs, len(inputs))
    found, again = preflight(briefs, inputs), preflight(mixed_briefs, mixed_items)
    assert found == again
    assert found.model_dump_json(include={"findings", "more"}) == again.model_dump_json(include={"findings", "more"})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("writes", "findings"),
    [
        pytest.param("out/{key}.json", 0, id="plain-paths"),
        pytest.param("out/{key}-*.json", 0, id="globs-that-begin-differently"),
        pytest.param("**/{key}.json", 0, id="globs-that-end-differently"),
        pytest.param("all.json", 4_999, id="one-path"),
    ],
)
def test_thousands_of_items(writes: str, findings: int) -> None:
    """Many items aren't compared with one another, and only the first findings are kept, in natural order."""
    found = preflight([brief(writes=[writes])], items(*map(str, range(5_000))))
    assert len(found.findings) + found.more == findings
    assert [str(each.second) for each in found.findings] == [f"one/{n}" for n in range(1, MAX_FINDINGS + 1) if findings]


@pytest.mark.slow
def test_too_many_overlaps() -> None:
    """Globs of which nearly all overlap are refused as such, rather than listed."""
    with pytest.raises(DependenceError, match="More than 100,000 pairs of globs overlap"):
        preflight([brief(writes=["*{key}*"])], items(*map(str, range(450))))


@pytest.mark.parametrize(
    ("briefs", "inputs", "on_dependence", "messages"),
    [
        pytest.param([brief()], ITEMS, "refuse", [], id="independent"),
        pytest.param([brief(writes=["n.md"])], ITEMS, "serialize", [], id="serialised"),
        pytest.param(
            [brief(writes=["n.md"])],
            ITEMS,
            "refuse",
            [
                (
                    "'one/a' and 'one/b' both write 'n.md'; give each a path of its own (with {key} in it, say), "
                    "or set limits.on_dependence to 'serialize'."
                )
            ],
            id="refused",
        ),
        pytest.param(
            [brief("outline", writes=["n.md"]), brief("text", "Use the output of outline.")],
            ITEMS,
            "serialize",
            [
                (
                    "Brief 'text' asks for what brief 'outline' answers ('output of outline'); dispatch it after "
                    "that one and give it the report as items, or reword it if that isn't meant."
                )
            ],
            id="no-order-mends-it",
        ),
    ],
)
def test_refusal(
    briefs: list[Brief], inputs: list[Item], on_dependence: Literal["refuse", "serialize"], messages: list[str]
) -> None:
    """Findings are refused with their messages, unless running one after another was asked for and mends them."""
    found = preflight(briefs, inputs)
    if not messages:
        require_independence(found, on_dependence)
        return
    with pytest.raises(DependenceError) as refused:
        require_independence(found, on_dependence)
    assert list(refused.value.findings) == messages


def test_a_refusal_says_how_many_more() -> None:
    """What is beyond the findings that are kept is counted in the refusal."""
    found = preflight([brief(resources=["gpu"])], items(*map(str, range(1_050))))
    with pytest.raises(DependenceError, match=r"And 1,029 more\.$") as refused:
        require_independence(found, "refuse")
    assert len(refused.value.findings) == MAX_FINDINGS + 1


def test_what_mends_several_pairs_is_told_once() -> None:
    """Every pair is named, and behind the last of a kind the way out of all of them."""
    briefs = [
        brief("one", writes=["a; b"]),
        brief("two", writes=["a; b"], resources=["db"]),
        brief("three", resources=["db"]),
    ]
    found = preflight([*briefs, brief("four", writes=["a; b"])], [Item(key="k", value="v")])
    with pytest.raises(DependenceError) as refused:
        require_independence(found, "refuse")
    told = str(refused.value)
    assert told.count("both write 'a; b'.") == 1
    assert told.count("both write 'a; b'; give each a path of its own") == 1
    assert told.count("give each") == 2
    assert told.count("'three/k' and 'two/k' both need 'db' for themselves; give each its own, or set") == 1
    assert all("; " in finding.message for finding in found.findings)
