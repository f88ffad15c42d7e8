"""One job's own code, apart from another's: two folders may each have a module of the same name."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator
    from types import ModuleType


@contextmanager
def own_code(folder: Path) -> Generator[None]:
    """Forget, after the block, the modules that it has imported from below a folder, and how they were found.

    Args:
        folder: The folder of a job; a virtual environment inside it stays as it is.
    """
    path, known = [*sys.path], set(sys.modules)
    places = [place for each in path if (place := Path(each).resolve()).is_relative_to(folder)]
    try:
        yield
    finally:
        sys.path[:] = path
        for name in set(sys.modules) - known:
            if any(_is_own(home, folder, places) for home in _homes(sys.modules[name])):
                del sys.modules[name]


def _homes(module: ModuleType) -> list[str]:
    """Return the file of a module, or the folders of a package without one."""
    file: str | None = getattr(module, "__file__", None)
    return [file] if file else list(getattr(module, "__path__", ()))


def _is_own(home: str, folder: Path, places: list[Path]) -> bool:
    found = Path(home).resolve()
    return found.is_relative_to(folder) and not any(found.is_relative_to(place) for place in places)
