"""Files and resources that several pieces of work lay claim to: the pairs, the locks, and who goes first."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

from prefect_dispatch.errors import DependenceError
from prefect_dispatch.globs import Glob, overlaps
from prefect_dispatch.ledger import Ref
from prefect_dispatch.tasks.components import components

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prefect_dispatch.models import Brief
    from prefect_dispatch.tasks.independence import Kind

MOST = 100_000
"""Overlapping pairs beyond which nobody would want the locks."""

_Node = Ref | tuple[str, Glob]
"""A piece of work, or a glob that work writes or reads."""


@dataclass(frozen=True)
class Contest:
    """Two pieces of work that lay claim to the same."""

    kind: Kind
    first: Ref
    second: Ref
    on: str


@dataclass(frozen=True)
class Claims:
    """Who writes, reads, and uses alone; each list in canonical order and without repeats."""

    writers: dict[Glob, list[Ref]] = field(default_factory=lambda: defaultdict(list))
    readers: dict[Glob, list[Ref]] = field(default_factory=lambda: defaultdict(list))
    users: dict[str, list[Ref]] = field(default_factory=lambda: defaultdict(list))

    def add(self, brief: Brief, item: str) -> None:
        """Take the claims of a brief as it reads for an item; work comes in canonical order.

        Raises:
            BriefError: If a glob can't be read.
        """
        ref = Ref(brief=brief.name, item=item)
        for globs, patterns in ((self.writers, brief.writes), (self.readers, brief.reads)):
            for glob in dict.fromkeys(map(Glob.parse, patterns)):
                globs[glob].append(ref)
        for resource in dict.fromkeys(brief.resources):
            self.users[resource].append(ref)

    def shared(self) -> list[tuple[Glob, Glob]]:
        """Return every two globs that overlap, each with itself included.

        Raises:
            DependenceError: If they are too many to tell apart.
        """
        globs = [*{*self.writers, *self.readers}] if self.writers else []
        pairs = list(islice(overlaps(globs), MOST + 1))
        if len(pairs) > MOST:
            example = " and ".join(repr(glob.text) for glob in pairs[0])
            finding = f"More than {MOST:,} pairs of globs overlap, {example} among them; name the files more exactly."
            raise DependenceError([finding])
        return [*((glob, glob) for glob in globs), *pairs]

    def contests(self, shared: list[tuple[Glob, Glob]]) -> Iterator[Contest]:
        """Yield everybody who shares a glob or a resource with its first holder, and a pair for every two globs."""
        for resource, users in self.users.items():
            yield from (Contest("resource", users[0], user, resource) for user in users[1:])
        for one, other in shared:
            writers, readers = self.writers.get(one, []), self.readers.get(one, [])
            if one == other:
                yield from (Contest("write", writers[0], writer, one.text) for writer in writers[1:])
                yield from _pair("read", writers, readers, one.text)
            else:
                on = f"{one.text} and {other.text}"
                yield from _pair("write", writers, self.writers.get(other, []), on)
                yield from _pair("read", writers, self.readers.get(other, []), on)
                yield from _pair("read", self.writers.get(other, []), readers, on)

    def locks(self, shared: list[tuple[Glob, Glob]], rings: list[list[Ref]]) -> dict[Ref, frozenset[str]]:
        """Return for each piece of work that must be alone with something the names of that."""
        edges: dict[Glob, list[Glob]] = defaultdict(list)
        for one, other in shared:
            if one in self.writers and other in self.writers:
                edges[one].append(other)
                edges[other].append(one)
        crowds = [(f"resource {name}", users) for name, users in self.users.items()]
        for globs in components(edges):
            writers = [ref for glob in globs for ref in self.writers[glob]]
            crowds.append((f"write {min(globs).text}", writers))
        crowds += [(f"ring {min(ring, key=lambda ref: ref.order)}", ring) for ring in rings]
        held: dict[Ref, set[str]] = defaultdict(set)
        for name, refs in crowds:
            for ref in refs if len(set(refs)) > 1 else ():
                held[ref].add(name)
        return {ref: frozenset(names) for ref, names in held.items()}

    def order(self, shared: list[tuple[Glob, Glob]]) -> tuple[dict[Ref, int], list[list[Ref]]]:
        """Return the stage of work that reads what other work writes, and the rings of work that does so mutually.

        Work leads to the globs that it writes, these to the globs that read them, and these to the readers:
        one step each, however many write and read.
        """
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
        stage: dict[_Node, int] = defaultdict(int)
        rings: list[list[Ref]] = []
        for nodes in components(edges):
            refs = [node for node in nodes if isinstance(node, Ref)]
            rings += [refs] if len(refs) > 1 else []
            now = max(stage[node] for node in nodes)
            stage.update(dict.fromkeys(nodes, now))
            for target in {target for node in nodes for target in edges.get(node, ())}.difference(nodes):
                stage[target] = max(stage[target], now + bool(refs))
        return {node: now for node, now in stage.items() if isinstance(node, Ref) and now}, rings


def _pair(kind: Kind, firsts: list[Ref], seconds: list[Ref], on: str) -> Iterator[Contest]:
    """Yield the first two of two lists that are not the same, a writer before a reader."""
    pairs = ((first, second) for first in firsts for second in seconds if first != second)
    if pair := next(pairs, None):
        first, second = pair if kind == "read" else sorted(pair, key=lambda ref: ref.order)
        yield Contest(kind, first, second, on)
