"""Which rule is for which field."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from prefect_dispatch.integrators.records.rules import Conflicts, FieldRule, Rule, Source

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from prefect_dispatch.integrators.records.trust import Trust

Path = tuple[str, ...]
"""The keys that lead to a field, from the record; those inside the elements of a list have no number between."""


class _Ruling(NamedTuple):
    """What is for one field."""

    rule: Rule
    name: str
    policy: Conflicts
    plain: bool


@dataclass(frozen=True)
class Rulebook:
    """Which rule is for which field.

    Example:
        >>> largest = FieldRule(field="year", rule="max")
        >>> book = Rulebook({("year",): largest}, default=Rule(rule="longest"), identity=[("name",)])
        >>> book.rule(("year",)).name, book.rule(("note",)).name, book.rule(("name",)).name
        ('max', 'longest', 'priority')
    """

    rules: Mapping[Path, FieldRule]
    """Rules by path."""
    default: Rule
    """For fields without a rule of their own, or of an object that they are in."""
    identity: Sequence[Path]
    """The fields that make records the same; they are decided by `priority` unless a rule says otherwise."""
    conflicts: Conflicts = "resolve"
    """What is done where records disagree, unless a rule says otherwise."""
    trust: Mapping[Source | None, Trust] = field(default_factory=dict["Source | None", "Trust"])
    """How reliable sources are, by what `trust` takes for a source."""

    _made: dict[Path, _Ruling] = field(default_factory=dict["Path", "_Ruling"], init=False, repr=False, compare=False)

    def rule(self, path: Path) -> Rule:
        """Return the rule for a field."""
        return self._ruling(path).rule

    def name(self, path: Path) -> str:
        """Return the name of the rule for a field."""
        return self._ruling(path).name

    def policy(self, path: Path) -> Conflicts:
        """Return what is done where records disagree about a field."""
        return self._ruling(path).policy

    def plain(self, path: Path) -> bool:
        """Return whether what a single record says of the field stands there as it is, and whole."""
        return self._ruling(path).plain

    def _ruling(self, path: Path) -> _Ruling:
        if path not in self._made:  # asked for each field of each record
            rule = self._rule(path)
            policy = "resolve" if self.identifies(path) else rule.conflicts or self.conflicts
            plain = rule.picks and not self.elements(path) and not self.opens(path)
            self._made[path] = _Ruling(rule, rule.name, policy, plain)
        return self._made[path]

    def _rule(self, path: Path) -> Rule:
        for length in range(len(path), 0, -1):
            if found := self.rules.get(path[:length]):
                if found.identity and length < len(path):
                    break  # elements with an identity are records of their own
                return found
        return Rule() if self.identifies(path) else self.default

    def identifies(self, path: Path) -> bool:
        """Return whether a change of the field could change the identity, of the record or of an element."""
        return any(
            path[: len(base)] == base and len(path) > len(base) and _meet(path[len(base) :], other)
            for base, other in self._identities()
        )

    def opens(self, path: Path) -> bool:
        """Return whether some rule is for a part of the field."""
        return any(len(other) > len(path) and other[: len(path)] == path for other in self.rules)

    def elements(self, path: Path) -> Sequence[Path]:
        """Return what makes elements of the list at a path the same; nothing where lists are merged by content."""
        found = self.rules.get(path)
        return [tuple(name.split(".")) for name in found.identity] if found else ()

    def keeps_type(self, path: Path) -> bool:
        """Return whether the field, with all its parts, is always what some record says."""
        parts = [path, *(other for other in self.rules if other[: len(path)] == path)]
        return all(self.rule(part).picks and self.policy(part) != "keep_all" for part in parts)

    def _identities(self) -> Iterator[tuple[Path, Path]]:
        yield from (((), path) for path in self.identity)
        for base, rule in self.rules.items():
            yield from ((base, tuple(name.split("."))) for name in rule.identity)


def _meet(one: Path, other: Path) -> bool:
    return one[: len(other)] == other[: len(one)]
