"""Names of the user's own classes and functions: `module:name`.

A name is only looked up in code below a folder that the user named (a job
file's, or the working folder), so that a parameter can't reach into
installed packages or the standard library.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from typing import TYPE_CHECKING, Any

from prefect_dispatch.errors import BriefError

if TYPE_CHECKING:
    from pathlib import Path

REFERENCE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def refer(thing: Any) -> str:  # noqa: ANN401 -- a function, a class or a name already
    """Return the `module:name` of a function or class; a name passes through.

    Example:
        >>> refer(len), refer("shapes:Licence")
        ('builtins:len', 'shapes:Licence')
    """
    if isinstance(thing, str):
        return thing
    name = getattr(thing, "__qualname__", type(thing).__qualname__)  # a callable object goes by its class
    return f"{thing.__module__}:{name}"


def resolve(reference: str, root: Path) -> Any:  # noqa: ANN401 -- whatever the user's module holds
    """Return what `module:name` stands for, in code below `root`.

    Args:
        reference: Module and name, such as `shapes:Licence`.
        root: The folder that holds the user's code; it is put on the import path.

    Raises:
        BriefError: If the module isn't below `root`, or lacks the name.
    """
    module_name, _, name = reference.partition(":")
    root = root.resolve()
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
        importlib.invalidate_caches()
    try:
        spec = importlib.util.find_spec(module_name.partition(".")[0])
    except ValueError:  # `__main__`, or whatever was put together by hand
        spec = None
    homes: list[str] = []  # where `os` and `builtins` come from is a word, and no file
    if spec and spec.origin:
        homes = [spec.origin] if spec.has_location else []
    elif spec:
        homes = list(spec.submodule_search_locations or ())
    if not homes or not all(_below(home, root) for home in homes):
        raise BriefError(f"{reference!r} is not code of yours: no module {module_name!r} lies below {root.name!r}/.")
    try:
        found: Any = importlib.import_module(module_name)
        return getattr(found, name)
    except (Exception, SystemExit) as error:  # the user's module runs here, and may call sys.exit()
        raise BriefError(f"{reference!r} can't be loaded: {type(error).__name__}: {error}.") from error


def _below(home: str | None, root: Path) -> bool:
    from pathlib import Path  # noqa: PLC0415 -- keeps the annotation import lazy

    return home is not None and Path(home).resolve().is_relative_to(root)
