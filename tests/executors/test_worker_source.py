"""What tells one function from another: its source, what it uses, or a version."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import subprocess
import sys
from textwrap import dedent
from typing import TYPE_CHECKING, Any

import pytest

from prefect_dispatch import PythonCallable
from prefect_dispatch.errors import JobError

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

SOURCE = '''
import enum
import json
import logging
import os
import re
from collections import Counter
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import numpy
import helpers
from helpers import tidied, Words
from prefect_dispatch import Item

PROMPT = "Count."
LIMITS = {"most": 3, "of": ("a", 1.5, None, True, b"x", ...), "api_key": "correct-horse-battery"}
KINDS = frozenset({"b", "a"})
FIXED = MappingProxyType({"a": [1]})
PATTERN = re.compile("[a-z]+", re.IGNORECASE)
SINCE, FOR, PRICE, WHERE, ROWS = date(2026, 1, 1), timedelta(1), Decimal("0.1"), Path("a"), range(3)
LOG = logging.getLogger(__name__)
ADAPTED = logging.LoggerAdapter(LOG, {})
API_KEY = os.environ.get("SOME_API_KEY", "none")
UNUSED = object()


class Mode(enum.Enum):
    """An enumeration."""

    FAST = "fast"


MODE = Mode.FAST


def first(text):
    return text[:1]


def last(text):
    return text[-1:]


WAYS = {"first": first, "last": last}


class Counts:
    """A class with a default, a method that uses a helper, and one that calls the class above it."""

    most = 3

    def __init__(self, words=PROMPT):
        super().__init__()
        self.words = words

    def count(self):
        return tidied(self.words)


def count(text, most=LIMITS, *, kinds=KINDS):
    """Use all of it."""
    LOG.debug(ADAPTED, __name__, __file__)
    Counter(json.dumps(text)), numpy.array, helpers.OTHER, len(API_KEY)
    inner = [tidied(each) for each in text if each in Words.known]
    def deeper():
        return PATTERN, FIXED, WAYS, MODE, SINCE, FOR, PRICE, WHERE, ROWS
    return Counts(PROMPT), inner, deeper
'''
HELPERS = """
from functools import lru_cache

OTHER = 1
TRIM = " "


class Words:
    known = ("a",)


def tidied(text):
    return text.strip(TRIM)
"""


def module(folder: Path, name: str, source: str) -> ModuleType:
    """Return a module that is written anew."""
    (folder / f"{name}.py").write_text(source)
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules[name] = made
    spec.loader.exec_module(made)
    return made


def identity(folder: Path, *changes: tuple[str, str], name: str = "working", helpers: str = HELPERS) -> str:
    """Return the fingerprint of the function, with some of its source changed."""
    folder.mkdir(parents=True, exist_ok=True)
    source = SOURCE
    for before, after in changes:
        assert before in source + helpers
        source, helpers = source.replace(before, after), helpers.replace(before, after)
    module(folder, "helpers", helpers)
    return PythonCallable(module(folder, name, source).count).fingerprint


@pytest.fixture(autouse=True)
def modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the modules afterwards."""
    for name in ("helpers", "working", "other"):
        monkeypatch.setitem(sys.modules, name, sys)
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(('"""Use all of it."""', '"""Use it."""'), id="its lines"),
        pytest.param(("text.strip(TRIM)", "text.lstrip(TRIM)"), id="a helper"),
        pytest.param(('TRIM = " "', 'TRIM = "x"'), id="what a helper uses"),
        pytest.param(("OTHER = 1", "OTHER = 2"), id="a module"),
        pytest.param(('known = ("a",)', 'known = ("b",)'), id="a class elsewhere"),
        pytest.param(("most = 3", "most = 4"), id="a class"),
        pytest.param(('PROMPT = "Count."', 'PROMPT = "Sum."'), id="a prompt"),
        pytest.param(('"most": 3', '"most": 4'), id="a default"),
        pytest.param(("True, b", "1, b"), id="a kind"),
        pytest.param(('{"b", "a"}', '{"b", "c"}'), id="a default by name"),
        pytest.param(("[a-z]+", "[a-y]+"), id="a pattern"),
        pytest.param(("re.IGNORECASE", "re.MULTILINE"), id="a flag"),
        pytest.param(('{"a": [1]}', '{"a": [2]}'), id="deep inside"),
        pytest.param(("MODE = Mode.FAST", "MODE = None"), id="an enumeration"),
        pytest.param(('FAST = "fast"', 'FAST = "faster"'), id="its value"),
        pytest.param(("text[:1]", "text[:2]"), id="a function in a table"),
        pytest.param(("2026, 1, 1", "2026, 1, 2"), id="a date"),
        pytest.param(('Decimal("0.1")', 'Decimal("0.2")'), id="a price"),
        pytest.param(('Path("a")', 'Path("b")'), id="a path"),
        pytest.param(("range(3)", "range(4)"), id="a range"),
    ],
)
def test_what_counts(change: tuple[str, str], tmp_path: Path) -> None:
    """A change of whatever the function uses of the user's code makes another executor."""
    assert identity(tmp_path / "a") != identity(tmp_path / "b", change)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(("UNUSED = object()", "UNUSED = print"), id="what it doesn't use"),
        pytest.param(("correct-horse-battery", "wrong-horse-battery"), id="a key in a mapping"),
        pytest.param(('"SOME_API_KEY", "none"', '"SOME_API_KEY", "some"'), id="a key"),
        pytest.param(("getLogger(__name__)", 'getLogger("x")'), id="a log"),
        pytest.param(('{"b", "a"}', '{"a", "b"}'), id="the order of a set"),
    ],
)
def test_what_does_not_count(change: tuple[str, str], tmp_path: Path) -> None:
    """What can't change an answer, and what is a secret."""
    assert identity(tmp_path / "a") == identity(tmp_path / "b", change)


def test_where_a_module_lies_and_what_it_is_called_does_not_count(tmp_path: Path) -> None:
    """A script is another module wherever it is run."""
    assert identity(tmp_path / "a") == identity(tmp_path / "b", name="other")


def test_a_script_that_a_worker_loads_goes_by_its_file(tmp_path: Path) -> None:
    """There its module has a name of its own."""
    function = module(tmp_path, "working", "def same(text):\n    return text\n").same
    before = PythonCallable(function, version="1").fingerprint
    function.__module__ = "__loaded_by_a_worker__"
    assert PythonCallable(function, version="1").fingerprint == before


def test_a_secret_of_the_environment_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However a constant came to hold it."""
    change = 'PROMPT = "Count."', 'PROMPT = "Count " + os.environ["WORD_TOKEN"]'
    monkeypatch.setenv("WORD_TOKEN", "correct-horse")
    before = identity(tmp_path / "a", change)
    monkeypatch.setenv("WORD_TOKEN", "battery-staple")
    assert identity(tmp_path / "b", change) == before


@pytest.mark.slow
def test_it_is_the_same_in_another_process(tmp_path: Path) -> None:
    """As the script that is run, and where hashes are others."""
    here = identity(tmp_path)
    script = tmp_path / "script.py"
    script.write_text(
        SOURCE
        + dedent("""
        from prefect_dispatch import PythonCallable
        print(PythonCallable(count).fingerprint, PythonCallable(count, version="1").fingerprint)
    """)
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-W", "ignore", str(script)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)  # noqa: S603 -- our own
    source, version = done.stdout.split()
    assert source == here
    assert version == PythonCallable(module(tmp_path, "script", SOURCE).count, version="1").fingerprint


STATES = """
from functools import cache, partial, wraps


class Client:
    def ask(self, text):
        return text

    def __call__(self, text):
        return text


client = Client()


def uses_a_client(text):
    return client.ask(text)


def makes(prompt):
    def inside(text):
        return prompt + text
    return inside


holds = makes("a")


def noted(function):
    @wraps(function)
    def wrapped(text):
        return function(text)
    return wrapped


@noted
def decorated(text):
    return text


def uses_it(text):
    return holds(text)


def has_a_client(text, client=client):
    return text


@cache
def cached(text):
    return text


bound = client.ask
bare = lambda text: text
part = partial(lambda prompt, text: prompt + text, "a")
"""


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("uses_a_client", "it uses 'client', a Client, whose behaviour no source determines: give it a version"),
        ("has_a_client", "it uses 'has_a_client, default 1', a Client, whose behaviour no source"),
        ("holds", "'makes.<locals>.inside' holds values of the function that made it, which its source doesn't show"),
        ("decorated", "'decorated' holds values of the function that made it"),
        ("uses_it", "'holds' holds values of the function that made it"),
        ("cached", "how a _lru_cache_wrapper answers can't be read off a source: give it a version, such as '1', and"),
        ("bound", "how a method answers can't be read off a source"),
        ("client", "how a Client answers can't be read off a source"),
        ("bare", "how a lambda answers can't be read off a source: .*; or take a function with a def."),
        ("part", "how a partial answers can't be read off a source"),
    ],
)
def test_what_cannot_be_told_needs_a_version(name: str, told: str, tmp_path: Path) -> None:
    """It is refused, with the way out; a version is another executor's than another version."""
    function = getattr(module(tmp_path, "working", STATES), name)
    with pytest.raises(JobError, match=f"^executor.function: {told}"):
        PythonCallable(function).resolve_paths(tmp_path)
    one, two = (PythonCallable(function, version=version).fingerprint for version in ("1", "2"))
    assert one != two


def test_a_builtin_needs_a_version() -> None:
    """Its source can't be read."""
    with pytest.raises(JobError, match="how a builtin_function_or_method answers can't be read off a source"):
        _ = PythonCallable(len).fingerprint
    assert PythonCallable(len, version="1").fingerprint != PythonCallable(sum, version="1").fingerprint


def test_a_function_without_a_file_needs_a_version() -> None:
    """As in a console; and a helper of that kind."""
    space: dict[str, Any] = {"__name__": "console"}
    exec("def typed(text):\n    return text\ndef other(text):\n    return typed(text)", space)  # noqa: S102 -- ours
    with pytest.raises(
        JobError, match=r"executor\.function: the source of 'typed' can't be read: put it into a file, "
    ):
        _ = PythonCallable(space["typed"]).fingerprint
    assert re.fullmatch("[0-9a-f]{64}", PythonCallable(space["typed"], version="1").fingerprint)
