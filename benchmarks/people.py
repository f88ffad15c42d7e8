"""Synthetic people and firms, some of them in two spellings, to measure record linkage.

All names are composed of syllables and a few common words, so they refer to no real person. First names and surnames
follow a Zipf distribution, as real ones do, which makes blocking hard: the commonest names occur thousands of times,
and different people have names that differ in one letter.
"""

from __future__ import annotations

import random
import unicodedata
from itertools import accumulate
from typing import NamedTuple

_HEADS = """
    ba be bra ca cor da del do fer fon ga gra ha hol in ja ka kel kor la len lo ma mei mo na
    ni or pa per
""".split()  # noqa: SIM905 -- legible
_TAILS = """
    ber bert der din dorf feld gen ger hart ker land ler lin low man mann ner rich ro sen
    ski son stein ton
""".split()  # noqa: SIM905 -- legible
_MORE = """
    po ra ri ro sa schu si sta ste ta te tho tu u va vi vo wa we wi yo za zel zie ér ön ñe å ça üs
""".split()  # noqa: SIM905 -- legible
_KINDS = {"Corporation": "Corp.", "Company": "Co.", "Limited": "Ltd.", "International": "Intl.", "Institute": "Inst."}
_TRADES = """
    Steel Paper Foods Optics Software Marine Textile Energy Rail Timber Glass Chemicals
    Motors Press
""".split()  # noqa: SIM905 -- legible


class Person(NamedTuple):
    """A record, and the entity that it is about."""

    entity: int
    """Number of the entity; equal for records about the same one."""
    name: str
    """The name as this record spells it."""
    city: str
    """The city."""
    noise: str
    """Kind of change to the spelling; empty for the original one."""


class _Words:
    """Random words with a Zipf distribution."""

    def __init__(self, chance: random.Random, count: int, syllables: tuple[int, int], skew: float) -> None:
        words: dict[str, None] = {}
        while len(words) < count:
            parts = [chance.choice(_HEADS + _MORE) for _ in range(chance.randint(*syllables))]
            words["".join([*parts, chance.choice(_TAILS)]).title()] = None
        self._words = [*words]
        self._weights = [*accumulate(1 / rank**skew for rank in range(1, count + 1))]

    def draw(self, chance: random.Random) -> str:
        """Return a random word."""
        return chance.choices(self._words, cum_weights=self._weights)[0]


def create_people(count: int, *, twice: float = 0.1, seed: int = 7) -> list[Person]:
    """Return a number of records, a share of which are second spellings of other records.

    Example:
        >>> from collections import Counter
        >>> made = create_people(200)
        >>> len(made), sum(bool(each.noise) for each in made), create_people(200) == made
        (200, 20, True)
    """
    chance = random.Random(seed)
    firsts, lasts = _Words(chance, 300, (0, 1), 0.8), _Words(chance, 20_000, (1, 2), 0.8)
    cities = _Words(chance, 400, (1, 2), 0.6)
    known: dict[tuple[str, str], Person] = {}
    firm_share = 0.4
    while len(known) < count - int(count * twice):
        if chance.random() < firm_share:
            kind = chance.choice([*_KINDS])
            name = f"{lasts.draw(chance)} {chance.choice(_TRADES)} {kind}"
        else:
            middle = f" {chance.choice('ABCDEFGHJKLMNPRSTVW')}." if chance.random() < firm_share else ""
            name = f"{firsts.draw(chance)}{middle} {lasts.draw(chance)}"
        city = cities.draw(chance)
        known.setdefault((name, city), Person(len(known), name, city, ""))
    first = [*known.values()]
    second = [_respell(each, chance) for each in chance.sample(first, int(count * twice))]
    made = first + second
    chance.shuffle(made)
    return made


def _respell(person: Person, chance: random.Random) -> Person:
    ways = {
        "typo": _add_typo,
        "accents": _remove_accents,
        "order": _reverse_order,
        "short": _abbreviate,
        "typography": _change_typography,
    }
    for way in chance.sample([*ways], len(ways)):
        name = ways[way](person.name, chance)
        if name != person.name:
            return person._replace(name=name, noise=way)
    raise AssertionError(person)  # a typo is always possible


def _add_typo(name: str, chance: random.Random) -> str:
    at = chance.choice([place for place in range(1, len(name) - 1) if name[place].isalpha()])
    letter = chance.choice("abcdefghijklmnopqrstuvwxyz")
    return chance.choice(
        [
            name[:at] + name[at + 1 :],
            name[:at] + letter + name[at:],
            name[:at] + letter + name[at + 1 :],
            name[: at - 1] + name[at] + name[at - 1] + name[at + 1 :],
        ]
    )


def _remove_accents(name: str, _: random.Random) -> str:
    return "".join(letter for letter in unicodedata.normalize("NFD", name) if not unicodedata.combining(letter))


def _reverse_order(name: str, _: random.Random) -> str:
    *before, last = name.split()
    return name if last in _KINDS else f"{last}, {' '.join(before)}"


def _abbreviate(name: str, _: random.Random) -> str:
    first, *rest = name.split()
    return " ".join([first, *rest[:-1], _KINDS[rest[-1]]]) if rest[-1] in _KINDS else " ".join([f"{first[0]}.", *rest])


def _change_typography(name: str, chance: random.Random) -> str:
    return chance.choice([name.upper(), name.replace(" ", "  "), name.replace(".", ""), f"{name} "])
