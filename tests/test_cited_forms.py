"""Sources: the forms that count, and the check that asks for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from prefect_dispatch.models.checks import Sources, normalize_source, source_kind
from prefect_dispatch.models.item import Item

if TYPE_CHECKING:
    from pydantic import JsonValue

ITEM = Item(key="k", value="v")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("https://www.rfc-editor.org/rfc/rfc9110", "url"),
        ("http://例え.jp/x", "url"),
        ("https://sub.domain.co.uk:8443/a?b=c", "url"),
        ("https://example.com/paper", None),
        ("https://docs.example.org", None),
        ("http://localhost:8080/x", None),
        ("http://10.0.0.1/x", None),
        ("ftp://ftp.gnu.org/x", None),
        ("https://a b.org", None),
        ("https://[::1", None),
        ("https://host.org:port/", None),
        ("10.1038/171737a0", "doi"),
        ("doi: 10.1038/171737a0", "doi"),
        ("https://doi.org/10.1038/171737a0", "doi"),
        ("10.1038/", None),
        ("978-0-13-468599-1", "isbn"),
        ("ISBN-10: 0-306-40615-2", "isbn"),
        ("0-8044-2957-X", "isbn"),
        ("978-0-13-468599-2", None),
        ("0-306-40615-3", None),
        ("Molecular Structure of Nucleic Acids (1953)", "title"),
        ("Knuth, The Art of Computer Programming, 1968", "title"),
        ("Molecular Structure of Nucleic Acids", None),
        ("1953", None),
        ("Paper no. 195312", None),
        ("", None),
    ],
)
def test_the_form_of_a_source(text: str, kind: str | None) -> None:
    """Checked are the shape and the check digits; what is a placeholder or half of it is none."""
    assert source_kind(text) == kind


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("doi:10.1038/171737A0", "https://doi.org/10.1038/171737a0"),
        ("978-0-306-40615-7", "ISBN 0306406152"),
        ("https://www.w3.org/TR/", "https://w3.org/TR"),
        ("Molecular structure (1953)", "  molecular Structure, 1953 "),
    ],
)
def test_one_source_written_in_two_ways(one: str, other: str) -> None:
    """It counts once."""
    assert normalize_source(one) == normalize_source(other)
    assert normalize_source("979-10-90636-07-1") != normalize_source("978-0-306-40615-7")


@pytest.mark.parametrize(
    ("check", "value", "told"),
    [
        pytest.param({}, {"sources": ["10.1038/171737a0"]}, None, id="one"),
        pytest.param({"at_least": 0}, {"sources": []}, None, id="none-asked-for"),
        pytest.param({}, {"sources": []}, "names 0 different sources; at least 1 are asked for", id="none"),
        pytest.param({}, "text", "names 0 different sources", id="no-list"),
        pytest.param({}, {"sources": ["see above"]}, "has 'see above', which is no source of a known form", id="vague"),
        pytest.param({}, {"sources": [3]}, "has '3', which is no source", id="a-number"),
        pytest.param(
            {"forms": ["doi"]}, {"sources": ["https://w3.org/TR"]}, "give each as a DOI such as", id="another"
        ),
        pytest.param(
            {"at_least": 2},
            {"sources": ["https://w3.org/TR", "https://www.w3.org/TR/"]},
            "names 1 different",
            id="same",
        ),
        pytest.param(
            {},
            {"sources": ["https://w3.org/TR", "https://www.w3.org/TR/"]},
            "of which only 1 are different",
            id="twice",
        ),
        pytest.param({"field": "a.b"}, {"a": {"b": ["10.1038/171737a0"]}}, None, id="inside"),
    ],
)
def test_sources_are_checked(check: dict[str, Any], value: JsonValue, told: str | None) -> None:
    """What is wrong is told with the field, the value and the forms that count."""
    problem = Sources.model_validate(check).problem(value, ITEM)
    assert problem is None if told is None else told in str(problem)


def test_a_check_for_no_form() -> None:
    """There must be some form that counts."""
    with pytest.raises(ValidationError, match="at least 1 item"):
        Sources(forms=())
