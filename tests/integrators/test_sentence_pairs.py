"""One sentence beside one source: what was changed is doubted by the right rule, and what says the same is not."""

from __future__ import annotations

import pytest

from prefect_dispatch import check_text

WRONG: dict[str, tuple[str, str, str]] = {
    "roles": ("Acme sued Bosch in May.", "Bosch sued Acme in May.", "direction"),
    "roles-of-nouns": ("The landlord pays the tenant.", "The tenant pays the landlord.", "direction"),
    "roles-in-the-passive": ("Acme was beaten by Bosch.", "Acme beat Bosch.", "direction"),
    "a-comparison": ("Acme is larger than Bosch.", "Bosch is larger than Acme.", "direction"),
    "from-and-to": ("Germany exports steel to France.", "France exports steel to Germany.", "direction"),
    "down": ("Costs went down by 12 percent.", "Costs went up by 12 percent.", "direction"),
    "halved": ("The profit halved.", "The profit doubled.", "direction"),
    "a-lost-negation": ("The licence permits sublicensing.", "The licence does not permit sublicensing.", "negation"),
    "another-rate": ("It costs 5 euros per month.", "It costs 5 euros per year.", "unit"),
    "another-rate-in-other-words": ("The fee is 30 euros a year.", "The fee is 30 euros a month.", "unit"),
    "a-range": ("Acme shipped 5-7 t of copper.", "Acme shipped 5,000 to 6,000 kg of copper.", "number"),
    "the-unit-of-a-range": ("The machine weighs 5–6 kg.", "The machine weighs 5 to 6 t.", "unit"),  # noqa: RUF001 -- a dash
    "thousands-in-german": ("Der Preis ist 12.600 Euro.", "Der Preis ist 12500 Euro.", "number"),
    "subjects-without-names": (
        "Imports reached 300 tonnes while exports reached 200 tonnes.",
        "Exports reached 300 tonnes, while imports reached 200 tonnes.",
        "subject",
    ),
    "another-year": ("In 2021 sales were 6 million.", "Sales were 6 million in 2020 and 5 million in 2021.", "subject"),
    "years-changed-over": (
        "In 2022, revenue was 5 million; in 2023 it was 4 million.",
        "In 2022, revenue was 4 million; in 2023 it was 5 million.",
        "subject",
    ),
    "a-title": ("Dr. Miller approved the budget.", "Anna Schmitt approved the budget.", "name"),
}
HONEST = {
    "the-passive": ("Bosch was beaten by Acme.", "Acme beat Bosch."),
    "nouns-in-the-passive": ("The landlord is paid by the tenant.", "The tenant pays the landlord."),
    "both-ways": ("Acme sued Bosch in May.", "Bosch sued Acme in April. Acme sued Bosch in May."),
    "partners": ("Acme met Bosch in May.", "Bosch met Acme in May."),
    "up-in-another-verb": ("The server was set up by Acme.", "Acme shut down a server, and set it up."),
    "the-opposite-of-what-is-negated": ("The bridge is unsafe.", "The bridge is not safe."),
    "the-same-rate": ("The fee is €30/month.", "The fee is 30 euros a month."),
    "a-speed": ("The car did 60 km/h.", "The car did 60 kilometres per hour."),
    "a-range": ("Acme shipped 5-6 t of copper.", "Acme shipped 5,000 to 6,000 kg of copper."),
    "a-range-in-words": ("The delivery takes 2 to 3 weeks.", "The delivery takes 14 to 21 days."),
    "thousands-in-german": ("Der Preis ist 12.500 Euro.", "Der Preis ist 12500 Euro."),
    "a-mass-in-german": ("Die Lieferung wiegt 5.400 kg.", "Die Lieferung wiegt 5,4 t."),
    "decimals-in-german": ("Das Paket wiegt 1,234 kg und ist da.", "Das Paket wiegt 1234 g und ist da."),
    "thousands-in-a-german-source": ("The price is 12,500 euros.", "Der Preis ist 12.500 Euro."),
    "the-same-year": ("In 2020 sales were 6 million.", "Sales were 6 million in 2020 and 5 million in 2021."),
    "a-figure-without-a-year": ("In 2021 there were 6 million.", "There were 6 million, and 5 million in 2021."),
    "a-half-year": ("G7 leaders met in H2 2023.", "The G7 leaders met in the second half of 2023."),
    "a-fiscal-year": ("In FY2023 sales rose.", "In fiscal year 2023 sales rose."),
    "a-title": ("Dr. Weber approved the budget.", "Weber approved the budget."),
}


@pytest.mark.parametrize(("text", "source", "kind"), WRONG.values(), ids=WRONG)
def test_a_changed_sentence_is_doubtful(text: str, source: str, kind: str) -> None:
    """The doubt is of the right kind, and on words of the sentence."""
    found = check_text(text, [source])
    assert kind in {reason.kind for reason in found.flags}
    assert all(text[each.start : each.end] == each.text for each in found.flags)


@pytest.mark.parametrize(("text", "source"), HONEST.values(), ids=HONEST)
def test_a_sentence_that_says_the_same_is_clean(text: str, source: str) -> None:
    """No rule has a doubt, other than that two languages can't be compared."""
    assert [each.message for each in check_text(text, [source]).flags if each.kind != "language"] == []


@pytest.mark.parametrize(
    ("heading", "kinds"),
    [
        ("## The client is bankrupt", ["support"]),
        ("**Acme has gone bankrupt**", ["support"]),
        ("The client is bankrupt:", ["support"]),
        ("## Acme did not pay the sum", ["negation"]),
        ("## Sales fell", ["direction"]),
        ("## Sales and risks", []),
        ("Three points are relevant:", []),
        ("## What is not covered", []),
        ("## It", []),
    ],
)
def test_what_a_heading_states_is_looked_up(heading: str, kinds: list[str]) -> None:
    """A heading needs no citation, but what it says of a subject stands in some source."""
    source = "Acme paid the sum. Sales rose by 5 percent."
    found = check_text(f"{heading}\n\n- Acme paid the sum [1].\n- Sales rose by 5 percent [1].", [source])
    assert [each.kind for each in found.flags] == kinds
