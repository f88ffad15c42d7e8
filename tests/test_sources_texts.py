"""The text of files in whatever encoding."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_dispatch.errors import SourceError
from prefect_dispatch.sources import read_items
from prefect_dispatch.sources.files import Glob
from prefect_dispatch.sources.object_store import decode

if TYPE_CHECKING:
    from pathlib import Path

FRENCH = "Le garçon a mangé dès l\u2019été, voilà: “déjà”."
SPANISH = "El niño comió piñas en España."
RUSSIAN = "Лицензия на программное обеспечение. Разрешается безвозмездно использовать."
JAPANESE = "このソフトウェアの使用を許可します。著作権表示を含めること。"


@pytest.mark.parametrize(
    ("data", "text"),
    [
        pytest.param(b"", "", id="empty"),
        pytest.param("naïve 🙂".encode(), "naïve 🙂", id="utf-8"),
        pytest.param("naïve 🙂".encode("utf-8-sig"), "naïve 🙂", id="utf-8-with-mark"),
        pytest.param("naïve 🙂".encode("utf-16"), "naïve 🙂", id="utf-16"),
        pytest.param(b"\xfe\xff" + "naïve".encode("utf-16-be"), "naïve", id="utf-16-big-endian"),
        pytest.param(b"a\r\nb\rc\n", "a\r\nb\rc\n", id="line-ends"),
        pytest.param(SPANISH.encode("latin-1"), SPANISH, id="latin-1"),
        pytest.param(FRENCH.encode("cp1252"), FRENCH, id="cp1252"),
        pytest.param("café".encode("latin-1"), "café", id="one-word"),
        pytest.param(RUSSIAN.encode("cp1251"), RUSSIAN, id="cp1251"),
        pytest.param(JAPANESE.encode("shift_jis"), JAPANESE, id="shift-jis"),
        pytest.param(b"{{ 7 * 7 }} ${HOME} $(id)", "{{ 7 * 7 }} ${HOME} $(id)", id="hostile"),
    ],
)
def test_a_file_is_its_text(data: bytes, text: str, tmp_path: Path) -> None:
    """Decoded by mark, as UTF-8, or as guessed; line ends and templates untouched."""
    (tmp_path / "a").write_bytes(data)
    assert read_items(Glob(glob="a"), tmp_path)[0].value == text


@pytest.mark.parametrize(
    ("data", "why"),
    [
        pytest.param(b"a\0b", "it holds NUL bytes", id="nul"),
        pytest.param(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "it holds NUL bytes", id="png"),
        pytest.param(b"\xff\xfea\0\0\0", "it holds NUL bytes", id="nul-in-utf-16"),
        pytest.param(b"\xff\xfea", "it is not utf-16", id="half-a-utf-16-character"),
        pytest.param(b"\xef\xbb\xbf\xff", "it is not utf-8-sig", id="mark-without-utf-8"),
        pytest.param(
            b"".join(sha256(bytes([number])).digest() for number in range(60)).replace(b"\0", b"\1"),
            "it is not text in any known encoding",
            id="noise",
        ),
    ],
)
def test_a_binary_file_is_refused_by_name(data: bytes, why: str, tmp_path: Path) -> None:
    """The message names the file and the ways out."""
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.bin").write_bytes(data)
    with pytest.raises(SourceError) as caught:
        read_items(Glob(glob="*"), tmp_path)
    message = f"File 'b.bin' is not text: {why}; narrow the glob, or set `encoding` if it is text."
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("data", "encoding", "text"),
    [
        pytest.param("Größe".encode("mac_roman"), "mac_roman", "Größe", id="what-would-be-guessed-wrong"),
        pytest.param("a".encode("utf-16-le"), "utf-16-le", "a", id="utf-16-without-mark"),
        pytest.param("Größe".encode(), "mac_roman", "Größe", id="utf-8-stays-utf-8"),
    ],
)
def test_an_encoding_can_be_stated_for_what_is_not_utf8(data: bytes, encoding: str, text: str, tmp_path: Path) -> None:
    """A stated encoding takes the place of the guess."""
    (tmp_path / "a").write_bytes(data)
    assert read_items(Glob(glob="a", encoding=encoding), tmp_path)[0].value == text


def test_a_stated_encoding_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    """No character is replaced or dropped."""
    (tmp_path / "a").write_bytes(b"\xe9")
    with pytest.raises(SourceError, match="File 'a' is not text: it is not ascii"):
        read_items(Glob(glob="a", encoding="ascii"), tmp_path)


@given(text=st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0")))
def test_every_unicode_text_comes_back(text: str) -> None:
    """UTF-8 and UTF-16 are read without loss."""
    assert decode(text.encode("utf-8-sig")) == decode(text.encode("utf-16")) == text
    assert decode(text.encode()) == text.removeprefix("\ufeff")
