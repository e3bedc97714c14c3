"""Wrong samplers must fail: every bug of the gallery, put into our running code, is seen; the right code passes.

The distribution tests ask for a deviation of at most 1e-12. A defect that the distribution sees must do at least the
damage that its entry states, in every step and, where weaker tests never come, at work from the second step of a
text on."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from gallery import BEGIN, END, GALLERY, PAGE, page_with_table
from gallery_tools import COMMON, REFUSAL, REVIEW, Defect, damage, distribution_of, passes_check
from models import PACKAGES
from pass_sampling.reference.exactness.suite import definition

EXACT = 1e-12  # sums of some thousand products of numbers in [0, 1], each wrong by a few times 2^-53
SEEN_BY_DISTRIBUTION = [defect for defect in GALLERY if defect.check is None]
SEEN_BY_CHECK = [defect for defect in GALLERY if defect.check is not None]
FUNDAMENTAL = (
    "replacement from the target",
    "residual by absolute value",
    "every draft accepted",
    "ratio on its head",
    "lenience",
    "bonus from the row before",
    "draft distributions shifted",
    "draft distribution at another temperature",
    "rejected draft in the cache",
)


def entry(name: str) -> Defect:
    return next(defect for defect in GALLERY if defect.name == name)


def marks(defect: Defect) -> Any:
    """Leave the whole gallery to make check; make test has a sample of it."""
    return () if defect.name in FUNDAMENTAL or defect.source == REVIEW else pytest.mark.check


def pairs(defects: list[Defect]) -> Any:
    """Parametrize by defect and package."""
    cases = [
        pytest.param(defect, name, marks=marks(defect), id=f"{defect.name}-{name}")
        for defect in defects
        for name in defect.packages
    ]
    return pytest.mark.parametrize(("defect", "name"), cases)


@pairs(SEEN_BY_DISTRIBUTION)
def test_the_distribution_sees_it_and_is_exact_without_it(defect: Defect, name: str) -> None:
    """The mutations are the same mistake in both packages, or else one would not be tested with it."""
    found = {late: damage(defect, name, late) for late in (False, True)}
    assert found[False] > defect.at_least and found[True] > defect.at_least_late, found
    assert name == "reference" or not defect.alike or abs(found[False] - damage(defect)) <= EXACT
    right = distribution_of(None, name, defect.case)
    assert right.largest_deviation(definition(defect.case)) <= EXACT
    assert sum(count > 0 for count in right.verified) >= 2, "drafts are verified in a second step, too"


@pytest.mark.parametrize("name", PACKAGES)
@pytest.mark.parametrize("key", ["rejected draft in the cache", "look-ahead row in the cache"])
def test_states_that_differ_after_the_same_tokens_are_not_merged(name: str, key: str) -> None:
    """What a rejected draft left in the cache depends on the way, so it may not be continued as one state."""
    with pytest.raises(ValueError, match="expected merge=False or keys for them"):
        damage(replace(entry(key), merge=True), name)


@pairs(SEEN_BY_CHECK)
def test_a_check_sees_what_the_distribution_cannot(defect: Defect, name: str) -> None:
    assert passes_check(defect, name, at_work=False)
    assert not passes_check(defect, name, at_work=True)


@pairs([defect for defect in SEEN_BY_CHECK if defect.distribution == "exact"])
def test_the_distribution_is_exact_though_it_is_a_bug(defect: Defect, name: str) -> None:
    assert damage(defect, name) <= EXACT


@pairs([defect for defect in SEEN_BY_CHECK if defect.distribution == "refused"])
def test_the_enumeration_refuses_what_it_cannot_tell(defect: Defect, name: str) -> None:
    with pytest.raises((ValueError, RuntimeError), match=REFUSAL.pattern):
        damage(defect, name)


def test_every_entry_has_a_name_of_its_own_and_most_were_seen_elsewhere() -> None:
    assert max(Counter(defect.name for defect in GALLERY).values()) == 1
    assert all(defect.source and defect.what for defect in GALLERY)
    assert sum(defect.source not in (COMMON, REVIEW) for defect in GALLERY) >= 28


@pytest.mark.check
def test_the_table_in_the_documentation_is_what_the_gallery_gives() -> None:
    """After a change: `python tests/gallery.py` writes it."""
    page = PAGE.read_text(encoding="utf-8")
    assert page.count(BEGIN) == page.count(END) == 1
    assert page == page_with_table(page)
