"""English words that the check of a text's wording needs: opposites, negations, and words without content.

The lists are short and written for this check. A word that isn't in them is compared by its stem alone.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
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

LINKING_VERBS = _words(
    "is are was were be been being isn't aren't wasn't weren't has have had went goes became becomes remains remained "
    "stays stayed gets got gone become"
)
"""Verbs before a word that says something of a subject: `the client went bankrupt`."""

LEAD_IN_STEMS = _stems(
    "relevant clear mixed divided following numerous important notable key unanimous listed summarized described "
    "given shown found raised discussed considered identified reported observed possible available needed required "
    "worth manifold diverse various below follow"
)
"""Stems of words with which a lead-in speaks of what follows: `three points are relevant:`."""

MOVES = _words("go goes going gone went move moves moved moving turn turns turned trend trended is are was were")
"""Verbs after which `up` and `down` are directions: `costs went up`, other than `it was set up`."""

COPULAS = _words("is are was were be been being isn't aren't wasn't weren't")
"""Forms of `to be`, after which a predicate stands."""

JOINS = frozenset({"and", "but", "while", "whereas", "although", "though"})
"""Words that may join two clauses."""

TIMES = _words(
    "january february march april may june july august september october november december monday tuesday wednesday "
    "thursday friday saturday sunday"
)
"""Capitalised words that are no subject."""

ARTICLES = _words("the a an its their his her")
PARTNERS = _words("with like unlike between both or that which who whose")
"""Words between two nouns that tell nothing about which of them acts."""

SYMMETRIC_STEMS = _stems(
    "meet met marry married partner compete tie tied draw drew discuss talk talked speak spoke border merge cooperate "
    "collaborate fight fought clash resemble equal match join differ agree disagree"
)
"""Stems of verbs whose subject and object may change places: `Acme met Bosch`."""

NEGATIVE_PREFIXES = ("un", "in", "im", "dis", "non", "ir", "il", "mis")

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
double doubled doubling | halve halved halving
accelerate acceleration | decelerate deceleration
appear | disappear vanish
surplus | deficit
inflation | deflation
upgrade | downgrade
inflow | outflow
deposit | withdraw withdrew withdrawn withdrawal
lender creditor | borrower debtor
landlord | tenant
plaintiff | defendant
exceed exceeded surpass surpassed | miss missed undershoot undershot
advantage benefit | disadvantage drawback
strength | weakness
optimism | pessimism
bullish | bearish
hawkish | dovish
tighten | loosen
widen | narrow
lengthen | shorten
overestimate | underestimate
up upwards | down downwards
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


_WITHOUT_SPACES = ("CJK", "HIRAGANA", "KATAKANA", "THAI")
_MIN_START = 4
"""Least length of a word that says something in any language."""
_START = 5
"""Number of letters in which forms of a word agree in most languages."""


def list_word_starts(text: str) -> list[str]:
    """Return the starts of the long words of a text in any language; of a script without spaces, pairs of letters.

    Example:
        >>> list_word_starts("Die Kündigungsfrist"), list_word_starts("客户付款")
        (['kündi'], ['客户', '户付', '付款'])
    """
    starts: list[str] = []
    for word in WORD.findall(text.lower()):
        if unicodedata.name(word[0], "").startswith(_WITHOUT_SPACES):
            starts += [word[at : at + 2] for at in range(max(1, len(word) - 1))]
        elif len(word) >= _MIN_START:
            starts.append(word[:_START])
    return starts


# Frequent words of languages in Latin script, which distinguish them. English is detected by `is_english`.
_FREQUENT = {
    "German": _words(
        "der die das und ist nicht mit den dem des ein eine einer eines von zu auf für im sich auch wird werden hat "
        "haben bei nach aus über sind wurde kann als"
    ),
    "French": _words("le la les et est une des du pour dans qui sur pas au aux ce cette sont avec par il elle ont été"),
    "Spanish": _words("el la los las y es una por con para que del al se su como más pero fue son está en han"),
    "Italian": _words("il lo gli di della che non per è una nel con sono del dei alla da si ha le più anche"),
    "Portuguese": _words("o os as e é uma não para com que do da dos das em no na por foi são mais ao"),
    "Dutch": _words("het een en van niet de is dat op voor met zijn aan er ook werd bij naar wordt"),
    "Swedish": _words("och att det som är på för inte av till den ett om har kan från var"),
    "Danish": _words("og at det er som på til ikke af den et har kan fra var blev med"),
    "Polish": _words("i w na się nie jest że do z to jak przez oraz są został dla"),
}
_MIN_FREQUENT = 2
"""Number of frequent words from which on a language is known."""
_SCRIPT_CHARS = 2_000
"""Number of characters by which a script is detected."""
_LETTER = re.compile(r"[^\W\d_]")
_SCRIPTS = (
    *("LATIN", "CYRILLIC", "GREEK", "ARABIC", "HEBREW", "DEVANAGARI", "THAI", "HANGUL", "CJK", "HIRAGANA", "KATAKANA"),
)


def detect_language(text: str) -> str:
    """Return the name of a text's language, or of its script if it isn't Latin; empty if it is unknown.

    Example:
        >>> detect_language("The client paid."), detect_language("Der Kunde hat bezahlt."), detect_language("MIT")
        ('English', 'German', '')
        >>> detect_language("Клиент заплатил."), detect_language("客户付款")
        ('CYRILLIC', 'CJK')
    """
    scripts = Counter(
        unicodedata.name(letter, "").partition(" ")[0] for letter in _LETTER.findall(text[:_SCRIPT_CHARS])
    )
    script = max(_SCRIPTS, key=lambda each: scripts[each])
    if script != "LATIN" and scripts[script]:
        return "CJK" if script in ("HIRAGANA", "KATAKANA") else script
    words = [word.lower() for word in WORD.findall(text[:20_000])]
    counts = {language: sum(word in frequent for word in words) for language, frequent in _FREQUENT.items()}
    if is_english(text):
        return "English" if any(word in _ENGLISH for word in words) else ""
    best, second = sorted(counts, key=lambda each: -counts[each])[:2]
    # Languages such as Danish and Swedish share most of these words.
    is_clear = counts[best] >= _MIN_FREQUENT and counts[best] > counts[second]
    return best if is_clear else ""
