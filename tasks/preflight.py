"""Preflight: checks that the work is independent, before anything is spent.

Examines what briefs declare (`reads`, `writes`, `resources`) and what briefs
and items mention of one another. No file is opened, no program run, no request sent.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from itertools import islice, zip_longest
from typing import TYPE_CHECKING, Literal, TypeVar, get_args

from pydantic import Field

from prefect_dispatch.errors import BriefError, DependenceError
from prefect_dispatch.executors.base import original_name
from prefect_dispatch.models.base import Strict
from prefect_dispatch.models.brief import find_needed
from prefect_dispatch.models.globs import Glob, find_overlaps
from prefect_dispatch.models.item import look_up
from prefect_dispatch.models.ledger import Ref, sort_key
from prefect_dispatch.tasks.work_item import used_fields

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence

    from prefect_dispatch.models.brief import Brief
    from prefect_dispatch.models.item import Item


_T = TypeVar("_T", bound="Hashable")


def strongly_connected_components(edges: Mapping[_T, Iterable[_T]]) -> list[list[_T]]:
    """Return the strongly connected components, each after all that lead to it (Kosaraju's algorithm).

    Args:
        edges: For each node the nodes that it leads to.

    Example:
        >>> [sorted(each) for each in strongly_connected_components({"a": ["b"], "b": ["c"], "c": ["b", "d"], "d": []})]
        [['a'], ['b', 'c'], ['d']]
    """
    # 1. Order the nodes by when a depth-first search leaves them.
    # 2. Search the reversed graph in the opposite order: each tree is a component.
    reversed_edges: dict[_T, list[_T]] = defaultdict(list)
    for node, targets in edges.items():
        for target in targets:
            reversed_edges[target].append(node)
    finish_order = [node for group in _search_trees(edges, list(edges)) for node in group]
    return _search_trees(reversed_edges, finish_order[::-1])


def _search_trees(edges: Mapping[_T, Iterable[_T]], starts: list[_T]) -> list[list[_T]]:
    """Return the trees of a depth-first search from each start that is not visited yet, each in post-order."""
    seen: set[_T] = set()
    trees: list[list[_T]] = []
    for start in starts:
        if start in seen:
            continue
        seen.add(start)
        tree: list[_T] = []
        path = [(start, iter(edges.get(start, ())))]
        while path:
            node, targets = path[-1]
            successor = next((target for target in targets if target not in seen), None)
            if successor is None:
                tree.append(node)
                path.pop()
            else:
                seen.add(successor)
                path.append((successor, iter(edges.get(successor, ()))))
        trees.append(tree)
    return trees


MAX_PAIRS = 100_000
"""Overlapping pairs, at most: with more, locks would serialize nearly everything."""


_Node = Ref | tuple[str, Glob]
"""Piece of work, or a glob that work writes or reads."""


Kind = Literal["name", "key", "output", "item", "read", "resource", "write"]
"""What ties two pieces of work: a name, a key, an output, an item that needs another, a file, a resource.

Findings are in this order, and the first are kept: those that fewer values of `limits.on_dependence` resolve."""


@dataclass(frozen=True)
class ResourceConflict:
    """Conflict of two pieces of work over a file, a resource, or a name."""

    kind: Kind
    first: Ref
    """The work that writes, or that comes first."""
    second: Ref
    on: str
    """The globs or the resource, as a message names them."""


@dataclass(frozen=True)
class Claims:
    """Index of writers, readers, and exclusive users; each list in canonical order and without duplicates."""

    writers: dict[Glob, list[Ref]] = field(default_factory=lambda: defaultdict(list))
    readers: dict[Glob, list[Ref]] = field(default_factory=lambda: defaultdict(list))
    users: dict[str, list[Ref]] = field(default_factory=lambda: defaultdict(list))
    needed: Mapping[str, frozenset[str]] = field(default_factory=dict[str, frozenset[str]])
    """For each brief all briefs that it needs, for the same item: it starts from their changes, in order."""
    alternatives: Mapping[str, str] = field(default_factory=dict[str, str])
    """The briefs whose changes are alternatives, of which one is merged, with the name of their group."""

    def add(self, brief: Brief, item: str) -> None:
        """Add the claims of a brief rendered for an item; work must be added in canonical order.

        Raises:
            BriefError: If a glob can't be parsed.
        """
        ref = Ref(brief=brief.name, item=item)
        for globs, patterns in ((self.writers, brief.writes), (self.readers, brief.reads)):
            for glob in dict.fromkeys(map(Glob.parse, patterns)):
                globs[glob].append(ref)
        for resource in dict.fromkeys(brief.resources):
            self.users[resource].append(ref)

    def overlapping_globs(self) -> list[tuple[Glob, Glob]]:
        """Return all pairs of globs that overlap, each glob paired with itself included.

        Raises:
            DependenceError: If there are too many.
        """
        globs = [*{*self.writers, *self.readers}] if self.writers else []
        # One more than allowed, to detect that there are too many.
        pairs = list(islice(find_overlaps(globs), MAX_PAIRS + 1))
        if len(pairs) > MAX_PAIRS:
            example = " and ".join(repr(glob.text) for glob in pairs[0])
            finding = (
                f"More than {MAX_PAIRS:,} pairs of globs overlap, {example} among them; name the files more exactly."
            )
            raise DependenceError([finding])
        return [*((glob, glob) for glob in globs), *pairs]

    def conflicts(self, shared: list[tuple[Glob, Glob]]) -> Iterator[ResourceConflict]:
        """Yield the conflicts: each user of a glob or a resource with the first, and one pair for two globs."""
        # A pair with the first user suffices: naming all pairs would be quadratic. Work that starts from the changes of
        # other work may read and write the same files.
        for resource, users in self.users.items():
            yield from (ResourceConflict("resource", users[0], user, resource) for user in users[1:])
        for one, other in shared:
            writers, readers = self.writers.get(one, []), self.readers.get(one, [])
            if one == other:
                for at, writer in enumerate(writers):
                    earlier = (each for each in writers[:at] if not self._are_related(each, writer))
                    if rival := next(earlier, None):
                        yield ResourceConflict("write", rival, writer, one.text)
                yield from self._pair("read", writers, readers, one.text)
            else:
                on = f"{one.text} and {other.text}"
                yield from self._pair("write", writers, self.writers.get(other, []), on)
                yield from self._pair("read", writers, self.readers.get(other, []), on)
                yield from self._pair("read", self.writers.get(other, []), readers, on)

    def _are_related(self, one: Ref, other: Ref) -> bool:
        """Return whether one of two pieces of work starts from the changes of the other, or both are alternatives."""
        if one.item != other.item:
            return False
        group = self.alternatives.get(one.brief)
        if group is not None and group == self.alternatives.get(other.brief):
            return True
        return one.brief in self.needed.get(other.brief, ()) or other.brief in self.needed.get(one.brief, ())

    def _pair(self, kind: Kind, firsts: list[Ref], seconds: list[Ref], on: str) -> Iterator[ResourceConflict]:
        """Yield the first pair of two lists whose members differ and have no order, a writer before a reader."""
        pairs = (
            (first, second)
            for first in firsts
            for second in seconds
            if first != second and not self._are_related(first, second)
        )
        if pair := next(pairs, None):
            first, second = pair if kind == "read" else sorted(pair, key=lambda ref: ref.order)
            yield ResourceConflict(kind, first, second, on)

    def locks(self, shared: list[tuple[Glob, Glob]], cycles: list[list[Ref]]) -> dict[Ref, frozenset[str]]:
        """Return the lock names of each piece of work that must not run in parallel with some other work.

        Args:
            shared: The pairs of overlapping globs.
            cycles: Cycles of work that reads what the others write.
        """
        # 1. Globs that are written and overlap, also indirectly, share one lock.
        edges: dict[Glob, list[Glob]] = defaultdict(list)
        for one, other in shared:
            if one in self.writers and other in self.writers:
                edges[one].append(other)
                edges[other].append(one)
        groups = [(f"resource {name}", users) for name, users in self.users.items()]
        for globs in strongly_connected_components(edges):
            writers = [ref for glob in globs for ref in self.writers[glob]]
            groups.append((f"write {min(globs).text}", writers))
        # 2. So does the work of a cycle.
        groups += [(f"ring {min(ring, key=lambda ref: ref.order)}", ring) for ring in cycles]
        # 3. A lock of one holder is left out.
        held: dict[Ref, set[str]] = defaultdict(set)
        for name, refs in groups:
            for ref in refs if len(set(refs)) > 1 else ():
                held[ref].add(name)
        return {ref: frozenset(names) for ref, names in held.items()}

    def stages_and_cycles(self, shared: list[tuple[Glob, Glob]]) -> tuple[dict[Ref, int], list[list[Ref]]]:
        """Return the stage of each piece of work that reads what other work writes, and the cycles of such work.

        In the graph, work leads to the globs that it writes, these to overlapping globs that are read, and these to the
        readers: one edge each, so that the size is linear in the claims.

        Args:
            shared: The pairs of overlapping globs.
        """
        # 1. Build the graph.
        edges: dict[_Node, list[_Node]] = defaultdict(list)
        written: dict[Glob, list[Ref]] = {}
        for pair in shared:
            for one, other in {pair, pair[::-1]}:
                if one in self.writers and other in self.readers:
                    edges["write", one].append(("read", other))
                    edges["read", other] = list(self.readers[other])
                    written[one] = self.writers[one]
        for glob, writers in written.items():
            for ref in writers:
                edges[ref].append(("write", glob))
        # 2. Pass stages along, component by component; a component of several pieces of work is a cycle.
        stage: dict[_Node, int] = defaultdict(int)
        cycles: list[list[Ref]] = []
        for nodes in strongly_connected_components(edges):
            refs = [node for node in nodes if isinstance(node, Ref)]
            cycles += [refs] if len(refs) > 1 else []
            level = max(stage[node] for node in nodes)
            stage.update(dict.fromkeys(nodes, level))
            for target in {target for node in nodes for target in edges.get(node, ())}.difference(nodes):
                stage[target] = max(stage[target], level + bool(refs))
        return {node: level for node, level in stage.items() if isinstance(node, Ref) and level}, cycles


MAX_FINDINGS = 20
"""Findings that are kept; further ones are counted."""


RESOLVABLE_KINDS: dict[str, frozenset[Kind]] = {
    "refuse": frozenset(),
    "serialize": frozenset({"write", "read", "resource"}),
    "merge": frozenset({"write"}),
}
"""Kinds that each value of `limits.on_dependence` resolves; the others are refused."""


class Finding(Strict):
    """Two pieces of work that are not independent of each other."""

    kind: Kind
    """What they share."""
    first: Ref
    """The one that would have to run first, or is first in order."""
    second: Ref
    """The other; the same again if two items have one key, or two briefs one name."""
    on: str
    """The globs, the resource, the key, or the words that tie them."""
    message: str
    """The conflict and its solution, in a sentence."""


class Independence(Strict):
    """Result of preflight: whether the work is independent, and what the scheduler must respect if it is not.

    All of it is independent of the order of briefs and items.

    Example:
        >>> Independence().findings
        ()
    """

    findings: tuple[Finding, ...] = ()
    """The first findings: those that can't be serialised, then by kind and order."""
    more: int = Field(default=0, ge=0)
    """The number of further findings."""
    locks: dict[Ref, frozenset[str]] = Field(default_factory=dict[Ref, frozenset[str]], repr=False)
    """Names of the locks that a piece of work holds while it runs: two that share one never run at once."""
    stages: dict[Ref, int] = Field(default_factory=dict[Ref, int], repr=False)
    """Stages of work that reads what other work writes: it runs after all lower stages. Other work has stage 0."""


def require_independence(independence: Independence, on_dependence: Literal["refuse", "serialize", "merge"]) -> None:
    """Refuse work that is not independent.

    Args:
        independence: The result of preflight.
        on_dependence: `refuse`, `serialize` what can be run sequentially, or `merge` what is written by several.

    Raises:
        DependenceError: If there are findings that this doesn't resolve.
    """
    refused = [each for each in independence.findings if each.kind not in RESOLVABLE_KINDS[on_dependence]]
    if refused:
        more = [f"And {independence.more:,} more."] if independence.more else []
        raise DependenceError([*_messages(refused), *more])


def describe_waiver(
    independence: Independence, briefs: Sequence[Brief], on_dependence: Literal["refuse", "serialize", "merge"]
) -> str:
    """Return how a job has waived the independence of its work, and by which key; empty if it hasn't.

    Args:
        independence: The result of preflight, whose findings the job has resolved.
        briefs: The briefs.
        on_dependence: The key of the limits.
    """
    pairs = [
        f"{str(each.first)!r} and {str(each.second)!r} ({each.kind} {each.on!r})" for each in independence.findings
    ]
    more = f" and {independence.more:,} more pairs" if independence.more else ""
    waived = (
        [f"Independence was waived by `on_dependence: {on_dependence}` for {', '.join(pairs)}{more}."] if pairs else []
    )
    # Candidates are named as the brief that they are samples of.
    originals = {brief.name: original_name(brief) for brief in briefs}
    needs = {originals[brief.name]: [originals[name] for name in brief.needs] for brief in briefs if brief.needs}
    orders = [f"{name!r} starts from {', '.join(map(repr, dict.fromkeys(needed)))}" for name, needed in needs.items()]
    return " ".join([*waived, *([f"By `needs`, {'; '.join(sorted(orders))}."] if orders else [])])


def _messages(findings: Sequence[Finding]) -> Iterator[str]:
    """Yield the message of each finding; a solution that the next finding shares is left to that one."""
    parts = [finding.message.rpartition("; ") for finding in findings]
    for (pair, _, way_out), (_, _, next_way_out) in zip_longest(parts, parts[1:], fillvalue=("", "", "")):
        yield f"{pair}." if pair and way_out == next_way_out else f"{pair}; {way_out}" if pair else way_out


_OUTPUT = r"(?:outputs?|results?|answers?|findings?)"
_NAME = r"[a-z0-9]+(?:-[a-z0-9]+)*"
# Phrases such as "the output of brief x" and "x's answer".
_OUTPUT_REFERENCE = re.compile(
    rf"\b{_OUTPUT}\s+(?:of|from)\s+(?:(?:the\s+)?brief\s+)?['\"`]?(?P<of>{_NAME})(?![\w-])"
    rf"|(?<![\w-])(?P<own>{_NAME})['\"`]?['\u2019]s\s+{_OUTPUT}\b",
    re.IGNORECASE,
)


_PHRASE_ENDS = re.compile(
    r"['\"`]?\s*(?:$|[^\s\w]|(?:to|and|or|as|in|into|for|when|where|which|that|before|after|with)\b)"
)


_ALTERNATIVES = re.compile(r"\{[^{}]*,[^{}]*\}")


_KINDS = get_args(Kind)


_SERIALIZE = "or set limits.on_dependence to 'serialize'"


_NO_ALTERNATIVES: Mapping[str, str] = {}


def preflight(
    briefs: Sequence[Brief], items: Sequence[Item], alternatives: Mapping[str, str] = _NO_ALTERNATIVES
) -> Independence:
    """Return the dependencies between pieces of work, and what a scheduler must respect.

    Args:
        briefs: Every brief; each is put to every item.
        items: Every item.
        alternatives: The briefs whose changes are alternatives, in separate checkouts, with the name of their group:
            they may write the same files.

    Raises:
        BriefError: If a brief uses a field that an item has not, or a glob that can't be parsed.

    Example:
        >>> from prefect_dispatch import Brief, Item
        >>> notes = Brief(name="notes", instructions="Take notes.", writes=["notes.md"])
        >>> found = preflight([notes], [Item(key="a", value=1), Item(key="b", value=2)])
        >>> found.findings[0].message  # doctest: +ELLIPSIS
        "'notes/a' and 'notes/b' both write 'notes.md'; give each a path of its own (with {key} in it, say), or set ..."
        >>> sorted(map(str, found.locks))
        ['notes/a', 'notes/b']
    """
    # 1. Names and keys must be unique: without that, nothing else can be determined.
    if repeated := list(_duplicates(briefs, items)):
        return _to_independence(repeated)
    # 2. Collect references to other briefs, and claims.
    briefs = sorted(briefs, key=lambda brief: brief.name)
    items = sorted(items, key=lambda item: sort_key("", item.key))
    fields_by_brief = {brief.name: _used_fields(brief) for brief in briefs}
    ties: dict[tuple[str, str, str], ResourceConflict] = {}
    claims = Claims(needed=find_needed({brief.name: brief.needs for brief in briefs}), alternatives=alternatives)
    for item in items:
        for brief in briefs:
            foreign = [path for path in fields_by_brief[brief.name] if _is_foreign(brief, item, path, fields_by_brief)]
            for path in foreign:
                other = path.partition(".")[0]
                ties.setdefault(
                    (brief.name, other, path), _conflict("output", other, brief.name, item.key, f"{{{path}}}")
                )
            if not foreign and (brief.reads or brief.writes or brief.resources):
                claims.add(brief.fill_placeholders(item), item.key)
    # 3. Derive conflicts, stages and locks.
    shared = claims.overlapping_globs()
    stages, cycles = claims.stages_and_cycles(shared)
    contests = [
        *_mentioned_outputs(briefs, items),
        *_item_dependencies(briefs, items),
        *ties.values(),
        *claims.conflicts(shared),
    ]
    return _to_independence(contests, claims.locks(shared, cycles), stages)


def _duplicates(briefs: Sequence[Brief], items: Sequence[Item]) -> Iterator[ResourceConflict]:
    """Yield each name and each key that is used more than once."""
    names = Counter(brief.name for brief in briefs)
    keys = Counter(item.key for item in items)
    for name in (name for name, count in names.items() if count > 1):
        ref = Ref(brief=name, item=min(keys, default=""))
        yield ResourceConflict("name", ref, ref, name)
    for key in (key for key, count in keys.items() if count > 1):
        ref = Ref(brief=min(names, default=""), item=key)
        yield ResourceConflict("key", ref, ref, key)


def _used_fields(brief: Brief) -> list[str]:
    """Return the fields that a brief uses.

    Raises:
        BriefError: If one of its globs has alternatives, which are not supported.
    """
    for pattern in (*brief.reads, *brief.writes):
        if _ALTERNATIVES.search(pattern):
            raise BriefError(f"Brief {brief.name!r}: the glob {pattern!r} uses {{a,b}}; write one glob for each.")
    return used_fields(brief)


def _is_foreign(brief: Brief, item: Item, path: str, names: Iterable[str]) -> bool:
    """Return whether a field that a brief uses is the name of another brief, and no field of the item.

    Raises:
        BriefError: If it is neither.
    """
    try:
        look_up(item, path)
    except BriefError as error:
        other = path.partition(".")[0]
        if other in names and other != brief.name:
            return True
        raise BriefError(f"Brief {brief.name!r}: {error}") from None
    return False


def _mentioned_outputs(briefs: Sequence[Brief], items: Sequence[Item]) -> Iterator[ResourceConflict]:
    """Yield the first phrase of each brief that refers to another one's output."""
    names = {brief.name for brief in briefs}
    for brief in briefs if items else ():
        text = "\n".join((brief.scope, brief.instructions, *brief.constraints))
        seen = {brief.name}
        # Each other brief is reported once.
        for match in _OUTPUT_REFERENCE.finditer(text):
            other = (match["of"] or match["own"]).lower()
            if other in names - seen and _refers_to_brief(other, match):
                seen.add(other)
                yield _conflict("output", other, brief.name, items[0].key, " ".join(match[0].split()))


def _refers_to_brief(name: str, match: re.Match[str]) -> bool:
    """Return whether a matched phrase refers to the brief of that name: the name may be an ordinary word, too."""
    if "-" in name or re.search(r"['\"`]|\bbrief\b", (match["of"] and match[0]) or "", re.IGNORECASE):
        return True
    if match["of"]:
        return bool(_PHRASE_ENDS.match(match.string, match.end()))
    return not re.search(
        r"\b(?:an?|the|this|that|its|their|each|every)\s+$", match.string[: match.start()], re.IGNORECASE
    )


def _item_dependencies(briefs: Sequence[Brief], items: Sequence[Item]) -> Iterator[ResourceConflict]:
    """Yield each item that refers to another in a field `depends_on` or `needs`."""
    keys = {item.key for item in items}
    for item in items if briefs else ():
        fields = item.value if isinstance(item.value, dict) else {}
        for kind in ("depends_on", "needs"):
            references = fields.get(kind)
            for key in references if isinstance(references, list) else [references]:
                if isinstance(key, str) and key in keys and key != item.key:
                    first, second = (Ref(brief=briefs[0].name, item=each) for each in (key, item.key))
                    yield ResourceConflict("item", first, second, kind)


def _conflict(kind: Kind, first: str, second: str, item: str, on: str) -> ResourceConflict:
    return ResourceConflict(kind, Ref(brief=first, item=item), Ref(brief=second, item=item), on)


def _to_independence(
    contests: Iterable[ResourceConflict],
    locks: Mapping[Ref, frozenset[str]] | None = None,
    stages: Mapping[Ref, int] | None = None,
) -> Independence:
    """Return the result with the first findings in order, one for each pair and kind."""
    ordered = sorted(contests, key=lambda each: (_KINDS.index(each.kind), each.first.order, each.second.order, each.on))
    # Of several conflicts between the same two, the first is kept: `reversed` has it overwrite the others.
    unique = list({(each.kind, each.first, each.second): each for each in reversed(ordered)}.values())[::-1]
    findings = tuple(
        Finding(kind=each.kind, first=each.first, second=each.second, on=each.on, message=_format_message(each))
        for each in unique[:MAX_FINDINGS]
    )
    return Independence(
        findings=findings, more=max(0, len(unique) - MAX_FINDINGS), locks=dict(locks or {}), stages=dict(stages or {})
    )


def _format_message(conflict: ResourceConflict) -> str:
    """Return the message of a finding: the conflict and its solution."""
    first, second, on = str(conflict.first), str(conflict.second), conflict.on
    return {
        "name": f"More than one brief has the name {on!r}; give each its own.",
        "key": f"More than one item has the key {on!r}; give each its own.",
        "output": f"Brief {conflict.second.brief!r} asks for what brief {conflict.first.brief!r} answers ({on!r}); "
        f"dispatch it after that one and give it the report as items, or reword it if that isn't meant.",
        "item": f"{second!r} needs {first!r}, as its field {on!r} says; dispatch it after that one with the report in "
        f"its items, or drop the field.",
        "write": f"{first!r} and {second!r} both write {on!r}; give each a path of its own (with {{key}} in it, say), "
        f"{_SERIALIZE}.",
        "read": f"{second!r} reads what {first!r} writes ({on!r}); dispatch it after that one, {_SERIALIZE}.",
        "resource": f"{first!r} and {second!r} both need {on!r} for themselves; give each its own, {_SERIALIZE}.",
    }[conflict.kind]
