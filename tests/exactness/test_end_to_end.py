"""A smoke alarm beside the proof: texts drawn as users draw them, without a trace, against a target by brute force.

The enumeration runs single steps. Here run the loop, the engine, the stream of uniforms and stop strings, and what they
give is counted. The target shares no code with the enumeration (`brute_force`). A right sampler fails a test with
probability 1e-9; a mistake of the total variation that `SEES` states, over at most 64 cells, passes with at most 1e-6
(`chi_square`). What these draws do see is in the gallery, whose check is `texts_come_as_often_as_by_brute_force`.
"""

import math
from typing import Any

import pytest

import pass_sampling.reference as reference
from brute_force import SETTINGS, filtered
from chi_square import Cells, centre_needed, chance_to_miss, distance_seen, limit_of, upper_tail
from models import package
from pass_sampling.reference.exactness.cases import methods_of

FIRST_RULES = list({method: (method, rule) for method, rule in reversed(methods_of(reference))}.values())
NUM_TEXTS = {"reference": 4_000, "gpu": 12_000, "engine": 3_000}
SEES = {"reference": 0.10, "gpu": 0.062, "engine": 0.11}


def cases() -> list[Any]:
    """The port's loop with every method and rule, the reference's and the engine with every method.

    Rules take turns at the settings, so that the loop meets each setting with every method that has several.
    """
    turns = [(pair, list(SETTINGS)[number % 2]) for number, pair in enumerate(methods_of(reference))]
    found = [("gpu", *pair, setting) for pair, setting in turns]
    found += [("reference", *pair, setting) for setting in SETTINGS for pair in FIRST_RULES]
    found += [("engine", *pair, "stop strings in a transformer") for pair in FIRST_RULES]
    return [pytest.param(*case, marks=() if case[1:3] == ("pass", "token") else pytest.mark.check) for case in found]


@pytest.mark.parametrize(("way", "method", "rule", "name"), cases())
def test_texts_come_as_often_as_by_brute_force(way: str, method: str, rule: str | None, name: str) -> None:
    pkg, setting = package("reference" if way == "reference" else "gpu"), SETTINGS[name]
    draw = setting.draw_in_engine if way == "engine" else setting.draw
    drawn = draw(pkg, setting.case.method(pkg, method, rule), NUM_TEXTS[way])
    assert len(drawn) == NUM_TEXTS[way]
    assert distance_seen(len(drawn), Cells.of(setting.probs(), len(drawn)).degrees) <= SEES[way]
    assert setting.misfit(drawn) <= 1.0


def test_the_tails_are_those_of_the_chi_square_distributions() -> None:
    assert abs(upper_tail(2, 10.0) - math.exp(-5.0)) < 1e-15  # two degrees: an exponential distribution
    assert abs(upper_tail(1, 3.0) - math.erfc(math.sqrt(1.5))) < 1e-15
    # a normal variable with mean c, squared, is at most x if it lies between -x^(1/2) and x^(1/2)
    between = 0.5 * (math.erf((2 - 1.5) / math.sqrt(2)) + math.erf((2 + 1.5) / math.sqrt(2)))
    assert abs(chance_to_miss(1, 1.5**2, 4.0) - between) < 1e-13
    assert abs(upper_tail(63, limit_of(63)) / 1e-9 - 1) < 1e-9
    assert chance_to_miss(63, centre_needed(63), limit_of(63)) <= 1e-6
    assert 0.052 < distance_seen(20_000, 63) < 0.053


def test_filters_by_brute_force_on_a_row_worked_out_by_hand() -> None:
    logits = [0.0, 2.0, 1.0, 1.0, -9.0]
    assert filtered(logits, temperature=0.0) == {1: 1.0}
    assert list(filtered(logits, top_k=2)) == [1, 2, 3]  # the third ties with the second
    likeliest, second, total = math.exp(2), math.exp(1), sum(map(math.exp, logits))
    kept = filtered(logits, top_p=(likeliest + second / 2) / total)
    assert kept == pytest.approx({1: likeliest / (likeliest + second), 2: second / (likeliest + second)})
    assert filtered(logits, temperature=0.5, top_k=1) == {1: 1.0}
