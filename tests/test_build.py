"""The build brings the libraries of the report page: exact ones, from any registry, or says what to do."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
import zipfile
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import hatch_build
from hatch_build import VendorError, bring

if TYPE_CHECKING:
    from collections.abc import Generator

ROOT = Path(__file__).resolve().parents[1]
TEXT = b"export {};"


def package(members: dict[str, bytes]) -> bytes:
    """Return a package as npm has them."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as tar:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return made.getvalue()


GOOD = package({"package/lib.js": TEXT, "../../out.js": b"evil"})


@contextmanager
def registry(folder: Path, content: bytes) -> Generator[str]:
    """Serve one package as a registry does, under a path of its own."""
    place = folder / "npm" / "@scope" / "lib" / "-"
    place.mkdir(parents=True)
    (place / "lib-1.0.0.tgz").write_bytes(content)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/npm/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def pinned(page: Path, *, text: bytes = TEXT) -> Path:
    """Pin the package in a folder, and return where its file belongs."""
    page.mkdir()
    integrity = f"sha512-{base64.b64encode(hashlib.sha512(GOOD).digest()).decode()}"
    file = {"member": "package/lib.js", "name": "lib.js", "sha256": hashlib.sha256(text).hexdigest()}
    told = [{"name": "@scope/lib", "version": "1.0.0", "integrity": integrity, "files": [file]}]
    (page / "vendored.json").write_text(json.dumps(told))
    return page / "vendor" / "lib.js"


@pytest.mark.slow
def test_what_is_pinned_is_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file comes from the registry that the environment names; what is there needs none."""
    wanted = pinned(tmp_path / "page")
    with registry(tmp_path, GOOD) as url:
        monkeypatch.setenv("NPM_CONFIG_REGISTRY", url)
        bring(tmp_path / "page", pauses_s=(0,))
    assert [path.name for path in wanted.parent.iterdir()] == ["lib.js"]
    assert wanted.read_bytes() == TEXT
    bring(tmp_path / "page", pauses_s=(0,))  # nobody serves it any more


@pytest.mark.slow
def test_a_damaged_file_is_fetched_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is there and isn't what was pinned is replaced."""
    wanted = pinned(tmp_path / "page")
    wanted.parent.mkdir()
    wanted.write_text("half")
    with registry(tmp_path, GOOD) as url:
        monkeypatch.setenv("npm_config_registry", url)
        bring(tmp_path / "page", pauses_s=(0,))
    assert wanted.read_bytes() == TEXT


@pytest.mark.slow
@pytest.mark.parametrize(
    ("served", "text", "told"),
    [
        pytest.param(GOOD + b"\0", TEXT, "not the package that was pinned", id="another-package"),
        pytest.param(GOOD, b"else", "pins contradict", id="another-file"),
    ],
)
def test_another_one_is_refused(
    served: bytes, text: bytes, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package, or a file in it, that has another digest is not used."""
    wanted = pinned(tmp_path / "page", text=text)
    with registry(tmp_path, served) as url:
        monkeypatch.setenv("npm_config_registry", url)
        with pytest.raises(VendorError, match=told):
            bring(tmp_path / "page", pauses_s=(0,))
    assert not wanted.exists()


@pytest.mark.parametrize(
    ("url", "told"),
    [
        pytest.param("http://127.0.0.1:9", "can't be fetched .* npm_config_registry, or put the file", id="nobody"),
        pytest.param("file:///etc", "has to begin with https:// or http://", id="no-registry"),
    ],
)
def test_no_registry(url: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the package, the variable and the other way: to put the package there by hand."""
    wanted = pinned(tmp_path / "page")
    monkeypatch.setenv("npm_config_registry", url)
    with pytest.raises(VendorError, match=told):
        bring(tmp_path / "page", pauses_s=(0,))
    wanted.parent.mkdir(exist_ok=True)
    (wanted.parent / "lib-1.0.0.tgz").write_bytes(GOOD)
    bring(tmp_path / "page", pauses_s=(0,))
    assert wanted.read_bytes() == TEXT


def build(source: Path, out: Path, *options: str, registry: str) -> subprocess.CompletedProcess[str]:
    """Build what lies in a folder, in this environment and with no network but a registry."""
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(out), *options]
    env = {**os.environ, "npm_config_registry": registry}
    return subprocess.run(command, cwd=source, env=env, capture_output=True, text=True, check=False)  # noqa: S603 -- our own


@pytest.mark.slow
def test_a_wheel_from_the_sdist_needs_no_network(tmp_path: Path) -> None:
    """Wheel and sdist hold libraries and plugin; without libraries no wheel is built, and the way out is named."""
    assert not build(ROOT, tmp_path, "-t", "sdist", registry="http://127.0.0.1:9").returncode
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as tar:
        tar.extractall(tmp_path, filter="data")
    source = sdist.with_name(sdist.name.removesuffix(".tar.gz"))
    built = build(source, tmp_path, "-t", "wheel", registry="http://127.0.0.1:9")
    assert not built.returncode, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    vendored: list[dict[str, Any]] = json.loads((hatch_build.PAGE / "vendored.json").read_text())
    own = {"../script/main.js", "../page.css", "../template.html"}
    wanted = {file["name"] for each in vendored for file in each["files"]} | own
    assert {os.path.normpath(f"prefect_dispatch/reporting/html/vendor/{name}") for name in wanted} <= names
    plugin = {path.relative_to(ROOT).as_posix() for path in (ROOT / "agents/plugin").rglob("*") if path.is_file()}
    assert len(plugin) == 6
    assert {f"prefect_dispatch/{name}" for name in plugin} <= names
    (source / "src/prefect_dispatch/reporting/html/vendor/chart.js").unlink()
    refused = build(source, tmp_path, "-t", "wheel", registry="http://127.0.0.1:9")
    assert refused.returncode
    assert "npm_config_registry" in refused.stderr + refused.stdout
    assert "Traceback" not in refused.stderr + refused.stdout
    editable = build(source, tmp_path, "-t", "wheel:editable", registry="http://127.0.0.1:9")
    assert not editable.returncode, editable.stderr
