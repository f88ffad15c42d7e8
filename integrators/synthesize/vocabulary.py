"""English words that the check of a text's wording needs: opposites, negations, units, and words without content.

The lists are short and written for this check. A word that isn't in them is compared by its stem alone.
"""

from __future__ import annotations

import re
from functools import lru_cache
from importlib import import_module
from typing import Any

_SNOWBALL: Any = import_module("snowballstemmer")  # without types

WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")  # noqa: RUF001 -- an apostrophe
"""Pattern of a word."""
_POSSESSIVE = re.compile(r"'s?\Z")


@lru_cache(maxsize=1 << 16)
def stem_word(word: str) -> str:
    """Return the stem of a word in lower case.

    Example:
        >>> stem_word("licences"), stem_word("Licence's")
        ('licenc', 'licenc')
    """
    lowered = word.lower().replace("’", "'")  # noqa: RUF001 -- an apostrophe
    # A stemmer has a state, and so isn't shared by threads.
    return str(
        _SNOWBALL.stemmer("english").stemWord(lowered if lowered.endswith("n't") else _POSSESSIVE.sub("", lowered))
    )


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _stems(text: str) -> frozenset[str]:
    return frozenset(map(stem_word, text.split()))


FUNCTION_WORDS = _words(
    "a an the this that these those there here it its it's he she they them him her his their theirs we our ours us "
    "you your yours i me my mine who whom whose which what when where why how is are was were be been being am do does "
    "did doing done has have had having will would shall should can could may might must ought and or but nor so yet "
    "if then else than as at by for from in into of off on onto out over per to under up upon via with within about "
    "across along among around because behind beneath beside between beyond down during except like near since through "
    "throughout till toward towards until while although though however therefore thus hence also too very just only "
    "even still again more most less least much many few several some any all both each every either such same other "
    "others another own one ones self himself herself itself themselves s t d ll re ve m said says say according "
    "additionally furthermore moreover including include includes everything everyone anything something"
)
"""Words without content of their own, in lower case."""

META_STEMS = _stems(
    "agree disagree differ different difference vary answer source finding text document report state describe name "
    "mention note show compare alike similar whereas three two overall summary altogether"
)
"""Stems of words with which a text speaks of its sources, such as `both agree`; they need no evidence."""

NEGATIONS = _words(
    "not no never none nobody nothing neither nor without cannot hardly barely unable fail fails failed failing refuse "
    "refuses refused refusing deny denies denied lack lacks lacking avoid avoids avoided avoiding prevent prevents "
    "prevented preventing"
)
"""Words that negate what follows, besides all that end in `n't`."""

PLAIN_NEGATIONS = _words("not no never none nobody nothing neither nor without cannot")
"""Those of them that have no other meaning."""

ABSENCE_STEMS = _stems(
    "mention say state specify name list give report address discuss contain include cover provide find"
)
"""Stems of words with which a text says that a source is silent on something: `it does not mention costs`."""

CERTAINTY_WORDS = _words("only always solely definitely guarantee guarantees guaranteed")
"""Words that make a statement stronger."""

COPULAS = _words("is are was were be been being isn't aren't wasn't weren't")
"""Forms of `to be`, after which a predicate stands."""

NEGATIVE_PREFIXES = ("un", "in", "im", "dis", "non", "ir", "il", "mis")

UNITS = {
    word: (dimension, unit)
    for dimension, units in {
        "time": "second seconds|minute minutes|hour hours hourly|day days daily|week weeks weekly|month months monthly|"
        "year years yearly annual annually|decade decades|century centuries",
        "scale": "thousand|million millions|billion billions|trillion trillions",
        "currency": "dollar dollars usd|euro euros eur|pound pounds gbp|franc francs chf|yen jpy",
        "length": "mm millimetre millimeter millimetres millimeters|cm centimetre centimeter centimetres centimeters|"
        "m metre meter metres meters|km kilometre kilometer kilometres kilometers|mile miles|foot feet|inch inches",
        "mass": "mg milligram milligrams|g gram grams|kg kilogram kilograms|tonne tonnes ton tons",
        "data": "kb kilobyte kilobytes|mb megabyte megabytes|gb gigabyte gigabytes|tb terabyte terabytes",
    }.items()
    for unit, names in enumerate(units.split("|"))
    for word in names.split()
}
"""Dimension and number of each unit by its forms; two units of one dimension are different units."""

SMALL_COUNTS = {
    "two": 2,
    "three": 3,
    "four": 4,
    "five": 5,
    "six": 6,
    "seven": 7,
    "eight": 8,
    "nine": 9,
    "ten": 10,
}
"""Number words that often count what a source lists, and so need not stand there."""


_OPPOSITES = """
increase rise rose risen grow grew grown climb surge soar jump growth | decrease fall fell fallen drop decline
increase rise rose risen grow grew grown expand growth | shrink shrank plunge plummet slump reduce slow reduction
decrease fall fell fallen drop decline shrink shrank plunge plummet slump reduce reduction | climb surge soar jump
raise upward | lower downward cut
gain | lose lost loss
high higher highest | low lower lowest
more | less fewer
most | least
many | few
always | never
often frequently | rarely seldom
all every everyone everything | none nobody nothing no
majority | minority
maximum | minimum
improve improvement better | worsen worse deteriorate
strengthen strong stronger | weaken weak weaker
best | worst
good | bad
accept | reject refuse decline
agree | disagree decline refuse
approve approval | reject rejection disapprove
allow permit enable let | forbid prohibit ban prevent block
support favor favour | oppose opposition against resist
confirm admit | deny
open opening | close closing shut
start begin began begun launch | stop finish cease
win won winner | lose lost loser
buy bought purchase | sell sold
arrive come came | leave left depart
enter | exit
include including | exclude excluding
succeed success successful | fail failure failed
love like | hate dislike
remember | forget forgot forgotten
send sent | receive
lend lent | borrow
hire | fire dismiss
create build built construct | destroy demolish dismantle
attack | defend defence defense protect
guilty | innocent
convict | acquit
help assist support | hinder hamper harm
encourage | discourage
attend | miss skip
hide hid hidden conceal | reveal show disclose
pass | fail
save | waste
add | remove subtract
large big larger bigger largest | small smaller smallest little
long longer longest | short shorter shortest
old older oldest | new newer newest young younger latest
early earlier earliest | late later latest
first | last final
easy easier simple | difficult hard complex complicated harder
cheap cheaper affordable | expensive costly
rich wealthy | poor
safe safer | dangerous unsafe hazardous
positive | negative
true | false
correct | wrong incorrect
public | private
internal inside within indoor indoors interior | external outside outdoor outdoors exterior
major | minor
male man men boy husband father son brother he king | female woman women girl wife mother daughter sister she queen
hot hotter warm warmer | cold colder cool cooler
wide broad | narrow
fast faster quick quickly rapid rapidly | slow slower slowly
full | empty
urban | rural
domestic | foreign
north northern | south southern
east eastern | west western
above | below
before | after
input | output
encoder | decoder
natural | artificial
permanent | temporary
voluntary optional | mandatory compulsory required
modern | ancient
profit | loss
supply | demand
import | export
friend ally | enemy foe
victory | defeat
birth born | death dead die
alive | dead
day | night
summer | winter
morning | evening
automatic automated automatically | manual manually
extensive unlimited | limited
global | local
innovative advanced cutting-edge | outdated basic traditional
happy glad | sad angry
asset | liability
income revenue earnings | expense expenses cost
optimistic | pessimistic
interesting exciting | boring
impressive | mediocre poor
thriving flourishing | struggling
ascend | descend
parent | child
teacher | student
employer | employee
buyer customer | seller
"""


def _read_opposites() -> tuple[tuple[frozenset[str], frozenset[str]], ...]:
    sides = (line.split("|") for line in _OPPOSITES.strip().splitlines())
    return tuple((_stems(one), _stems(other)) for one, other in sides)


OPPOSITES = _read_opposites()
"""Pairs of sets of stems; each word of the one is an opposite of each word of the other."""
OPPOSITES_BY_STEM = {
    stem: [(pair[side], pair[1 - side]) for pair in OPPOSITES for side in (0, 1) if stem in pair[side]]
    for stem in {stem for pair in OPPOSITES for side in pair for stem in side}
}
"""Of each stem: the sets of those that mean the same, and of its opposites."""

_ENGLISH = _words("the of and to is are was were for with that this has have been not by from it at on as or be")
_OTHER = _words(
    "der das und ist nicht mit den dem ein eine einer von zu auf für im sich auch wird le la les et est une des du "
    "pour dans qui sur pas el los las y es una por con para que il lo gli di della che non per het een en van niet "
    "o os e"
)


def is_english(text: str) -> bool:
    """Return whether a text is in English, or too short to know; judged by its most frequent function words.

    Example:
        >>> is_english("MIT is short."), is_english("Die Lizenz ist kurz und erlaubt das.")
        (True, False)
    """
    words = [word.lower() for word in WORD.findall(text[:20_000])]
    if sum(word.isascii() for word in words) < len(words) / 2:
        return False
    return sum(word in _OTHER for word in words) <= sum(word in _ENGLISH for word in words)
