"""Is the work independent? Decided before anything is spent.

Looks at what briefs declare (`reads`, `writes`, `resources`) and at what briefs
and items say about one another. Nothing is opened, run or asked.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, get_args

from prefect_dispatch.errors import BriefError
from prefect_dispatch.ledger import Ref, place_of
from prefect_dispatch.tasks.claims import Claims, Contest
from prefect_dispatch.tasks.independence import SHOWN, Finding, Independence, Kind
from prefect_dispatch.tasks.work import fields_of
from prefect_dispatch.template import lookup

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from prefect_dispatch.models import Brief, Item

_OUTPUT = r"(?:outputs?|results?|answers?|findings?)"
_NAME = r"[a-z0-9]+(?:-[a-z0-9]+)*"
_SPOKEN = re.compile(
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


def preflight(briefs: Sequence[Brief], items: Sequence[Item]) -> Independence:
    """Return what ties pieces of work to one another, and what a scheduler must keep to.

    Args:
        briefs: Every brief; each is put to every item.
        items: Every item.

    Raises:
        BriefError: If a brief uses a field that an item has not, or a glob that can't be read.

    Example:
        >>> from prefect_dispatch import Brief, Item
        >>> notes = Brief(name="notes", instructions="Take notes.", writes=["notes.md"])
        >>> found = preflight([notes], [Item(key="a", value=1), Item(key="b", value=2)])
        >>> found.findings[0].message  # doctest: +ELLIPSIS
        "'notes/a' and 'notes/b' both write 'notes.md'; give each a path of its own (with {key} in it, say), or set ..."
        >>> sorted(map(str, found.locks))
        ['notes/a', 'notes/b']
    """
    if repeated := list(_repeated(briefs, items)):
        return _independence(repeated)
    briefs = sorted(briefs, key=lambda brief: brief.name)
    items = sorted(items, key=lambda item: place_of("", item.key))
    used = {brief.name: _used(brief) for brief in briefs}
    ties: dict[tuple[str, str, str], Contest] = {}
    claims = Claims()
    for item in items:
        for brief in briefs:
            foreign = [path for path in used[brief.name] if _is_foreign(brief, item, path, used)]
            for path in foreign:
                other = path.partition(".")[0]
                ties.setdefault((brief.name, other, path), _tie("output", other, brief.name, item.key, f"{{{path}}}"))
            if not foreign and (brief.reads or brief.writes or brief.resources):
                claims.add(brief.rendered(item), item.key)
    shared = claims.shared()
    stages, rings = claims.order(shared)
    contests = [*_spoken(briefs, items), *_needed(briefs, items), *ties.values(), *claims.contests(shared)]
    return _independence(contests, claims.locks(shared, rings), stages)


def _repeated(briefs: Sequence[Brief], items: Sequence[Item]) -> Iterator[Contest]:
    """Yield each name and each key that is used twice: nothing else can be told of such work."""
    names = Counter(brief.name for brief in briefs)
    keys = Counter(item.key for item in items)
    for name in (name for name, count in names.items() if count > 1):
        ref = Ref(brief=name, item=min(keys, default=""))
        yield Contest("name", ref, ref, name)
    for key in (key for key, count in keys.items() if count > 1):
        ref = Ref(brief=min(names, default=""), item=key)
        yield Contest("key", ref, ref, key)


def _used(brief: Brief) -> list[str]:
    """Return the fields that a brief uses anywhere, its globs being looked through for what isn't read."""
    for pattern in (*brief.reads, *brief.writes):
        if _ALTERNATIVES.search(pattern):
            raise BriefError(f"Brief {brief.name!r}: the glob {pattern!r} uses {{a,b}}; write one glob for each.")
    return fields_of(brief)


def _is_foreign(brief: Brief, item: Item, path: str, names: Iterable[str]) -> bool:
    """Return whether a field that a brief uses is no field of the item, but another brief.

    Raises:
        BriefError: If it is neither.
    """
    try:
        lookup(item, path)
    except BriefError as error:
        other = path.partition(".")[0]
        if other in names and other != brief.name:
            return True
        raise BriefError(f"Brief {brief.name!r}: {error}") from None
    return False


def _spoken(briefs: Sequence[Brief], items: Sequence[Item]) -> Iterator[Contest]:
    """Yield the first words of each brief that speak of another's output."""
    names = {brief.name for brief in briefs}
    for brief in briefs if items else ():
        text = "\n".join((brief.scope, brief.instructions, *brief.constraints))
        met = {brief.name}
        for words in _SPOKEN.finditer(text):
            other = (words["of"] or words["own"]).lower()
            if other in names - met and _meant(other, words):
                met.add(other)
                yield _tie("output", other, brief.name, items[0].key, " ".join(words[0].split()))


def _meant(name: str, words: re.Match[str]) -> bool:
    """Return whether words that hold a brief's name speak of the brief: the name may be an ordinary word, too."""
    if "-" in name or re.search(r"['\"`]|\bbrief\b", (words["of"] and words[0]) or "", re.IGNORECASE):
        return True
    if words["of"]:
        return bool(_PHRASE_ENDS.match(words.string, words.end()))
    return not re.search(
        r"\b(?:an?|the|this|that|its|their|each|every)\s+$", words.string[: words.start()], re.IGNORECASE
    )


def _needed(briefs: Sequence[Brief], items: Sequence[Item]) -> Iterator[Contest]:
    """Yield each item that names another in a field `depends_on` or `needs`."""
    keys = {item.key for item in items}
    for item in items if briefs else ():
        fields = item.value if isinstance(item.value, dict) else {}
        for field in ("depends_on", "needs"):
            named = fields.get(field)
            for key in named if isinstance(named, list) else [named]:
                if isinstance(key, str) and key in keys and key != item.key:
                    first, second = (Ref(brief=briefs[0].name, item=each) for each in (key, item.key))
                    yield Contest("item", first, second, field)


def _tie(kind: Kind, first: str, second: str, item: str, on: str) -> Contest:
    return Contest(kind, Ref(brief=first, item=item), Ref(brief=second, item=item), on)


def _independence(
    contests: Iterable[Contest],
    locks: Mapping[Ref, frozenset[str]] | None = None,
    stages: Mapping[Ref, int] | None = None,
) -> Independence:
    """Return the first findings in order, one for each pair and kind."""
    ordered = sorted(contests, key=lambda each: (_KINDS.index(each.kind), each.first.order, each.second.order, each.on))
    unique = list({(each.kind, each.first, each.second): each for each in reversed(ordered)}.values())[::-1]
    findings = tuple(
        Finding(kind=each.kind, first=each.first, second=each.second, on=each.on, message=_message(each))
        for each in unique[:SHOWN]
    )
    return Independence(
        findings=findings, more=max(0, len(unique) - SHOWN), locks=dict(locks or {}), stages=dict(stages or {})
    )


def _message(found: Contest) -> str:
    """Return the pair and the way out."""
    first, second, on = str(found.first), str(found.second), found.on
    return {
        "name": f"More than one brief has the name {on!r}; give each its own.",
        "key": f"More than one item has the key {on!r}; give each its own.",
        "output": f"Brief {found.second.brief!r} asks for what brief {found.first.brief!r} answers ({on!r}); dispatch "
        f"it after that one and give it the report as items, or reword it if that isn't meant.",
        "item": f"{second!r} needs {first!r}, as its field {on!r} says; dispatch it after that one with the report in "
        f"its items, or drop the field.",
        "write": f"{first!r} and {second!r} both write {on!r}; give each a path of its own (with {{key}} in it, say), "
        f"{_SERIALIZE}.",
        "read": f"{second!r} reads what {first!r} writes ({on!r}); dispatch it after that one, {_SERIALIZE}.",
        "resource": f"{first!r} and {second!r} both need {on!r} for themselves; give each its own, {_SERIALIZE}.",
    }[found.kind]
