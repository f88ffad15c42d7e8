"""An integrator of a user's own that proposes, and follows decisions: the least that a review can work with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from prefect_dispatch.integrators.decisions_file import DecisionsFile
from prefect_dispatch.models.decisions import Decisions
from prefect_dispatch.models.ledger import FieldRow, LedgerRow, Loser, Merge, Proposal, Ref

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pydantic import JsonValue

    from prefect_dispatch.models.brief import Brief
    from prefect_dispatch.models.outcome import Outcome


class Said(NamedTuple):
    """What one outcome says."""

    name: str
    year: int
    ref: Ref


class Linking:
    """Makes one record of equal names, keeps the largest year, and proposes names that start alike."""

    identity = ("name",)
    entries = "records"

    def __init__(self, aliases: str | None = "decisions.yaml", decisions: Decisions | None = None) -> None:
        """Name the decisions file."""
        self.aliases = aliases
        self.decisions = decisions or Decisions()

    def with_decisions(self, decisions: Decisions) -> Linking:
        """Follow these decisions."""
        return Linking(self.aliases, decisions)

    def resolve_paths(self, folder: Path) -> Linking:
        """Follow what the file says."""
        return self.with_decisions(DecisionsFile(folder / self.aliases).load()) if self.aliases else self

    def merge(self, briefs: Sequence[Brief], outcomes: Sequence[Outcome]) -> Merge:
        """Merge."""
        said = sorted(Said(value["name"], value["year"], Ref.of(o)) for o in outcomes for value in [_object(o.value)])
        one = {str(right["name"]): str(left["name"]) for left, right in self.decisions.same}
        groups: dict[str, list[Said]] = {}
        for each in said:
            groups.setdefault(one.get(each.name, each.name), []).append(each)
        records: list[JsonValue] = []
        rows: list[FieldRow] = []
        for at, (name, group) in enumerate(sorted(groups.items())):
            chosen = [c.value for c in self.decisions.fields if c.record == {"name": name} and c.field == "year"]
            year = chosen[0] if chosen else max(each.year for each in group)
            records.append({"name": name, "year": year})
            rows.append(_row(f"/records/{at}/name", name, "name", [(each.name, each.ref) for each in group]))
            rule = "decided" if chosen else "max"
            rows.append(_row(f"/records/{at}/year", year, rule, [(each.year, each.ref) for each in group]))
        return Merge(
            value={"records": records},
            ledger=tuple(LedgerRow(brief=o.brief, item=o.item, disposition="merged") for o in outcomes),
            fields=tuple(rows),
            rules="Names that are equal are one; the largest year stands.",
            proposals=self._proposals(groups),
        )

    def _proposals(self, groups: dict[str, list[Said]]) -> tuple[Proposal, ...]:
        apart = {(str(left["name"]), str(right["name"])) for left, right in self.decisions.different}
        return tuple(
            Proposal(
                left={"name": left},
                right={"name": right},
                score=0.8,
                why="The names start alike.",
                left_sources=tuple(each.ref for each in groups[left]),
                right_sources=tuple(each.ref for each in groups[right]),
            )
            for left in sorted(groups)
            for right in sorted(groups)
            if left < right and left[:3] == right[:3] and (left, right) not in apart
        )


def _object(value: JsonValue) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _row(path: str, winner: JsonValue, rule: str, said: list[tuple[JsonValue, Ref]]) -> FieldRow:
    others = dict.fromkeys(str(value) for value, _ in said if value != winner)
    return FieldRow(
        path=path,
        winner=winner,
        rule=rule,
        sources=tuple(ref for value, ref in said if value == winner),
        losers=tuple(
            Loser(
                value=next(value for value, _ in said if str(value) == text),
                sources=tuple(ref for value, ref in said if str(value) == text),
            )
            for text in others
        ),
    )
