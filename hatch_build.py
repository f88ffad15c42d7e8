"""The build's hook: brings the libraries of the report page, exact versions from an npm registry, no npm needed.

They are pinned in `src/prefect_dispatch/reporting/html/vendored.json` by the digest of the package and of each file,
and put into `page/vendor`, which git ignores and wheel and sdist hold. What is there already isn't fetched,
so a build from the sdist needs no network.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import ssl
import tarfile
import time
import urllib.request
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any

import certifi
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

if TYPE_CHECKING:
    from collections.abc import Sequence

PAGE = Path(__file__).parent / "src" / "prefect_dispatch" / "reporting" / "html"
REGISTRY = "https://registry.npmjs.org"
TIMEOUT_S = 60
LARGEST = 50_000_000
"""Bytes of a package; a longer answer is none."""


class VendorError(Exception):
    """A library can't be brought; the message says why, and the way out."""


class VendorHook(BuildHookInterface[Any]):
    """Brings the libraries before anything is built."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002 -- hatchling's signature
        """Bring them; without them no wheel is built, while a checkout goes on and its runs write no report.html."""
        try:
            bring(PAGE)
        except VendorError as error:
            if version != "editable":
                self.app.abort(str(error))
            self.app.display_warning(f"{error} Until then runs write every file but report.html.")


def bring(page: Path, *, pauses_s: Sequence[float] = (1, 3)) -> None:
    """Bring the libraries that a folder's `vendored.json` names into its folder `vendor`.

    Args:
        page: The folder.
        pauses_s: How long to wait before a registry that can't be reached is tried again, in seconds.

    Raises:
        VendorError: If that can't be.
    """
    folder = page / "vendor"
    for package in json.loads((page / "vendored.json").read_bytes()):
        if all(_sha256(folder / file["name"]) == file["sha256"] for file in package["files"]):
            continue
        content = _package(package, folder, pauses_s)
        folder.mkdir(exist_ok=True)
        for file in package["files"]:
            _write(folder / file["name"], _member(content, file, package["name"]))


def _package(package: dict[str, Any], folder: Path, pauses_s: Sequence[float]) -> bytes:
    """Return a package: the one that somebody has put into the folder, else the registry's."""
    name, version = package["name"], package["version"]
    tarball = f"{name.rpartition('/')[2]}-{version}.tgz"
    lying = folder / tarball
    content = lying.read_bytes() if lying.is_file() else _fetched(f"{_registry()}/{name}/-/{tarball}", lying, pauses_s)
    digest = base64.b64encode(hashlib.sha512(content).digest()).decode()
    if f"sha512-{digest}" != package["integrity"]:
        raise VendorError(
            f"{name} {version} is not the package that was pinned: its digest is sha512-{digest}, "
            f"not {package['integrity']}. Use a registry that has the original."
        )
    return content


def _registry() -> str:
    told = {name.lower(): value for name, value in os.environ.items()}.get("npm_config_registry") or REGISTRY
    if not told.startswith(("https://", "http://")):
        raise VendorError(f"npm_config_registry is {told!r}; it has to begin with https:// or http://.")
    return told.rstrip("/")


def _fetched(url: str, lying: Path, pauses_s: Sequence[float]) -> bytes:
    for pause_s in pauses_s:
        with suppress(OSError, HTTPException):  # what urllib raises, all of it
            return _read(url)
        time.sleep(pause_s)
    try:
        return _read(url)
    except (OSError, HTTPException) as error:
        raise VendorError(
            f"The report page needs {url}, which can't be fetched ({error}). Name a registry that can be reached "
            f"in the environment variable npm_config_registry, or put the file there yourself as {lying}."
        ) from None


def _read(url: str) -> bytes:
    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    with urllib.request.urlopen(url, timeout=TIMEOUT_S, context=context) as answer:  # noqa: S310 -- see _registry
        content: bytes = answer.read(LARGEST)
        return content


def _member(content: bytes, file: dict[str, str], package: str) -> bytes:
    """Return a file of a package that has been verified; nothing is unpacked to where its names say."""
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        found = tar.extractfile(file["member"])
        text = found.read() if found else b""
    if hashlib.sha256(text).hexdigest() != file["sha256"]:
        raise VendorError(
            f"{file['member']} of {package} is not what vendored.json has; the pins contradict each other."
        )
    return text


def _write(path: Path, content: bytes) -> None:
    """Write a file whole: another build may be looking."""
    draft = path.with_name(f".{path.name}-{os.getpid()}")
    draft.write_bytes(content)
    draft.replace(path)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
