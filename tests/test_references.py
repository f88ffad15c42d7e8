"""Names of the user's own classes and functions."""

from __future__ import annotations

import functools
import itertools
import sys
from typing import TYPE_CHECKING

import pytest

from prefect_dispatch.errors import BriefError
from prefect_dispatch.models.imports import import_reference, to_reference

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_numbers = itertools.count()


@pytest.fixture
def module(tmp_path: Path) -> Iterator[str]:
    """The name of a module that isn't loaded yet, in a folder of the user's; loaded ones are forgotten afterwards."""
    path, loaded = list(sys.path), set(sys.modules)
    name = f"shapes_{next(_numbers)}"
    (tmp_path / f"{name}.py").write_text("class Licence:\n    pass\n", encoding="utf-8")
    yield name
    sys.path[:] = path
    for each in sys.modules.keys() - loaded:
        del sys.modules[each]


def test_code_of_the_users_is_found(tmp_path: Path, module: str) -> None:
    """A name in a module below the folder stands for what that module holds, time and again."""
    found = import_reference(f"{module}:Licence", tmp_path)
    assert to_reference(found) == f"{module}:Licence"
    assert import_reference(f"{module}:Licence", tmp_path) is found


def test_a_package_is_found(tmp_path: Path, module: str) -> None:
    """Modules in folders count, with and without an `__init__`."""
    for folder in (f"{module}_a", f"{module}_b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "inner.py").write_text("x = 1\n", encoding="utf-8")
    (tmp_path / f"{module}_a" / "__init__.py").touch()
    assert import_reference(f"{module}_a.inner:x", tmp_path) == 1
    assert import_reference(f"{module}_b.inner:x", tmp_path) == 1


@pytest.mark.parametrize(
    "reference",
    [
        pytest.param("os:system", id="the-standard-library"),
        pytest.param("builtins:eval", id="builtins"),
        pytest.param("pydantic:BaseModel", id="an-installed-package"),
        pytest.param("__main__:x", id="the-program-itself"),
        pytest.param("nowhere_at_all:x", id="nothing"),
    ],
)
def test_other_code_is_out_of_reach(tmp_path: Path, module: str, reference: str) -> None:
    """A parameter can't reach what isn't the user's."""
    with pytest.raises(BriefError, match="is not code of yours: no module") as refused:
        import_reference(reference, tmp_path)
    assert str(tmp_path) not in str(refused.value)


@pytest.mark.parametrize("reference", ["os:system", "builtins:exec", "posix:system", "sys:exit"])
def test_built_in_modules_are_out_of_reach_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference: str
) -> None:
    """In the job's own folder, too: where they come from is a word, which could pass for a file there."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BriefError, match="is not code of yours: no module"):
        import_reference(reference, tmp_path)


def test_a_loaded_module_of_another_folder_is_out_of_reach(tmp_path: Path, module: str) -> None:
    """What was loaded for one job isn't lent to a job in another folder."""
    import_reference(f"{module}:Licence", tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(BriefError, match="lies below 'other'/"):
        import_reference(f"{module}:Licence", other)
    (other / f"{module}.py").write_text("Licence = 1\n", encoding="utf-8")
    with pytest.raises(
        BriefError, match=r"knows another module '\w+' already. Rename the one in 'other'/; jobs in several"
    ):
        import_reference(f"{module}:Licence", other)


def test_a_name_of_the_standard_library_is_taken(tmp_path: Path) -> None:
    """The user's module can't be loaded under it, and the message says why."""
    (tmp_path / "json").mkdir()
    (tmp_path / "json" / "__init__.py").write_text("x = 1\n", encoding="utf-8")
    with pytest.raises(BriefError, match="'json:x' can't be loaded: Python knows another module 'json' already"):
        import_reference("json:x", tmp_path)
    assert str(tmp_path) not in sys.path  # else it would be found first by what imports it later


@pytest.mark.parametrize(
    ("source", "message"),
    [
        pytest.param("", "AttributeError: module .* has no attribute 'Licence'", id="no-such-name"),
        pytest.param("import nowhere_at_all", "ModuleNotFoundError: ", id="its-import-fails"),
        pytest.param("class Licence(:", "SyntaxError: ", id="its-syntax-is-wrong"),
        pytest.param("1 / 0", "ZeroDivisionError: ", id="it-raises"),
        pytest.param("import sys; sys.exit(3)", "SystemExit: 3", id="it-ends-the-program"),
    ],
)
def test_code_that_cannot_be_loaded(tmp_path: Path, module: str, source: str, message: str) -> None:
    """Whatever goes wrong in the user's module is told as the brief's error."""
    (tmp_path / f"{module}.py").write_text(source, encoding="utf-8")
    with pytest.raises(BriefError, match=f"'{module}:Licence' can't be loaded: {message}"):
        import_reference(f"{module}:Licence", tmp_path)


def test_callables_without_a_name_go_by_their_class() -> None:
    """Any callable can be written down."""
    assert to_reference(functools.partial(print)) == "functools:partial"
