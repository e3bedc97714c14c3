"""`assert_exact`: right samplers pass, a wrong one fails with the event that is wrong, and its replay shows it."""

import itertools
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pass_sampling.reference import Ending, verify
from pass_sampling.reference.exactness import NotExact, assert_exact, replay
from pass_sampling.reference.exactness.distribution import target_distribution
from pass_sampling.reference.exactness.program import HiddenRandomness, program_distribution
from pass_sampling.reference.uniforms import UniformRow

TARGET = np.array([[[0.5, 0.3, 0.2]] * 3, [[0.1, 0.6, 0.3], [0.7, 0.1, 0.2], [0.2, 0.2, 0.6]], [[0.3, 0.3, 0.4]] * 3])
DRAFT = np.array([[0.2, 0.2, 0.6], [0.6, 0.3, 0.1]])


def after(tokens: tuple[int, ...]) -> Any:
    """The target: its rows depend on the position and the last token."""
    return TARGET[len(tokens), tokens[-1] if tokens else 0]


def rows(drafts: Any) -> Any:
    return np.array([after(tuple(drafts[:place])) for place in range(len(drafts) + 1)])


def draw(probs: Any) -> int:
    return int(np.random.choice(3, p=probs))  # noqa: NPY002  (the old style, too)


def residual(target: Any, draft: Any) -> Any:
    rest = np.maximum(target - draft, 0.0)
    return rest / rest.sum()


def speculate(correct: Callable[[Any, Any], Any] = residual, generous: float = 1.0, bonus: int = 2) -> tuple[int, ...]:
    """Two drafts and their verification, with the places where others were wrong."""
    drafts = [draw(row) for row in DRAFT]
    target = rows(drafts)
    for place, token in enumerate(drafts):
        if random.random() >= generous * target[place, token] / DRAFT[place, token]:
            return (*drafts[:place], draw(correct(target[place], DRAFT[place])))
    return (*drafts, draw(target[bonus]))


def by_rule(rule: verify.VerifyRule, uniforms: Any) -> tuple[int, ...]:
    """One verification of a rule of the reference, whose uniforms are an argument."""
    draws = UniformRow(uniforms, {"draft": 2, "accept": 2, "final": 1})
    drafts = np.array([draws.token("draft", DRAFT[place], place) for place in range(2)])
    done = rule(rows(drafts), DRAFT, drafts, draws)
    assert done.final_token is not None
    return (*drafts[: done.num_accepted].tolist(), done.final_token)


def loop(stop: Callable[[tuple[int, ...]], bool]) -> tuple[int, ...]:
    """Blocks of two drafts up to 3 tokens, or to the token 2."""
    text: tuple[int, ...] = ()
    while not stop(text) and len(text) < 3:
        drafts = [draw(row) for row in DRAFT[: 2 - len(text)]]
        for place, token in enumerate(drafts):
            target = after(text)
            if random.random() < target[token] / DRAFT[place, token]:
                text = (*text, token)
                if 2 in text:
                    return text
                continue
            text = (*text, draw(residual(target, DRAFT[place])))
            break
        else:
            text = (*text, draw(after(text)))
    return text


def has_ended(text: tuple[int, ...]) -> bool:
    return 2 in text


def drawn(rule: verify.VerifyRule) -> tuple[int, ...]:
    return by_rule(rule, np.random.default_rng().random(5))


TEXTS = target_distribution(after, Ending(3, eos_token_ids=(2,)))
RIGHT: dict[str, tuple[Callable[[], Any], Any]] = {
    "blocks": (speculate, after),
    "uniforms as an argument, block rule": (lambda: drawn(verify.verify_block), after),
    "uniforms as an argument, token rule": (lambda: drawn(verify.verify_token), after),
    "whole texts": (lambda: loop(has_ended), TEXTS),
    "texts that end": (lambda: loop(has_ended), lambda tokens: None if 2 in tokens else after(tokens)),
    "an outcome that is no text": (lambda: random.random() < 0.25, {True: 0.25, False: 0.75}),
    "a block that may be empty": (lambda: () if random.random() < 0.5 else (draw(after(())),), after),
}


@pytest.mark.parametrize(("program", "target"), RIGHT.values(), ids=RIGHT)
def test_a_right_sampler_passes(program: Callable[[], Any], target: Any) -> None:
    assert assert_exact(program, target).executions > 1


def token_acceptance(target_probs: Any, draft_probs: Any, draft_tokens: Any, draws: UniformRow) -> verify.Verification:
    """The block rule with the token rule's acceptance, as in vllm-ascend #7807."""
    accept = verify.accept_probs(target_probs, draft_probs, draft_tokens)
    for length in (2, 1):
        if draws.accept("accept", float(accept[length - 1]), length - 1):
            break
    else:
        length = 0
    row = target_probs[2] if length == 2 else residual(target_probs[length], draft_probs[length])
    return verify.Verification(length, draws.token("final", row), accept)


# The event that is most wrong, by how much, and the first tokens that show it, computed by hand: a token x is accepted
# with probability min(draft, target), 0.2 for each first token; 0.4 remains for what replaces a rejected one.
WRONG: dict[str, tuple[Callable[[], Any], Any, Any, float, Any]] = {
    "replaced from the target": (lambda: speculate(lambda row, _: row), after, (0,), 0.2 + 0.4 * 0.5 - 0.5, (0,)),
    "generous": (lambda: speculate(generous=1.5), after, (2,), 0.6 * 0.5 - 0.2, (2,)),
    "another residual": (lambda: speculate(lambda *_: TARGET[1, 0]), after, (0,), 0.2 + 0.4 * 0.1 - 0.5, (0,)),
    "bonus from the row before": (lambda: speculate(bonus=1), after, (1, 0, 0), 0.2 * 0.6 * (0.7 - 0.3), (1, 0, 0)),
    "an end overlooked": (lambda: loop(lambda text: False), TEXTS, (0, 2), -0.2 * 0.2, (0, 2)),
    "an outcome that is no text": (lambda: random.random() < 0.25, {True: 0.5, False: 0.5}, True, -0.25, True),
}  # fmt: skip


@pytest.mark.parametrize(("program", "target", "worst", "difference", "shortest"), WRONG.values(), ids=WRONG)
def test_a_wrong_sampler_fails_with_its_event_and_a_run_that_shows_it(program, target, worst, difference, shortest):
    with pytest.raises(NotExact) as failure:
        assert_exact(program, target)
    error = failure.value
    assert replay(program, error.uniforms) == error.outcome
    assert error.shown.difference > 0 and error.shown.matched(error.outcome) >= 0
    assert (error.worst.outcome, error.shortest.outcome) == (worst, shortest)
    assert error.worst.difference == pytest.approx(difference, abs=1e-12)
    assert f"replay(program, {error.uniforms}) returns {error.outcome!r}" in str(error)
    assert str(error).startswith(f"<lambda>: {error.worst}; total variation ")


def test_the_uniforms_are_a_plain_list_for_a_program_that_takes_them() -> None:
    """The block rule with the token rule's acceptance and residual, as in vllm-ascend #7807."""

    def rule(target_probs: Any, draft_probs: Any, draft_tokens: Any, draws: UniformRow) -> verify.Verification:
        accept = verify.accept_probs(target_probs, draft_probs, draft_tokens)
        length = next((size for size in (2, 1) if draws.accept("accept", float(accept[size - 1]), size - 1)), 0)
        row = target_probs[2] if length == 2 else residual(target_probs[length], draft_probs[length])
        return verify.Verification(length, draws.token("final", row), accept)

    with pytest.raises(NotExact) as failure:
        assert_exact(lambda: drawn(rule), after)
    uniforms = failure.value.uniforms
    assert all(type(number) is float for number in uniforms) and len(uniforms) == 5
    assert by_rule(rule, np.array(uniforms)) == failure.value.outcome


def test_the_fewest_tokens_that_show_a_mistake_are_named_beside_the_worst_event() -> None:
    wrong = {(0, 0): 0.25, (0, 1): 0.26, (1, 0): 0.4, (1, 1): 0.09}
    right = {(0, 0): 0.25, (0, 1): 0.25, (1, 0): 0.15, (1, 1): 0.35}
    with pytest.raises(NotExact) as failure:
        assert_exact(lambda: list(wrong)[np.random.default_rng().choice(4, p=list(wrong.values()))], right)
    begins = "an outcome that begins with"
    assert str(failure.value).splitlines() == [
        f"<lambda>: {begins} (1, 1) has probability 0.09, expected 0.35 (-0.26); total variation 0.26, 4 executions",
        f"fewest tokens that show a mistake: {begins} (0,) has probability 0.51, expected 0.5 (+0.01)",
        f"in its place: {begins} (1, 0) has probability 0.4, expected 0.15 (+0.25)",
        "replay(program, [0.7]) returns (1, 0)",
    ]


WEIGHTS = st.dictionaries(st.lists(st.integers(0, 2), max_size=3).map(tuple), st.integers(1, 9), min_size=1, max_size=6)


@given(WEIGHTS, WEIGHTS)
def test_no_event_is_more_wrong_than_the_one_that_is_named(found, target):
    probs, expected = ({text: count / sum(each.values()) for text, count in each.items()} for each in (found, target))

    def program() -> Any:
        return list(probs)[np.random.default_rng().choice(len(probs), p=list(probs.values()))]

    def difference(holds: Callable[[Any], bool]) -> float:
        return sum(p for text, p in probs.items() if holds(text)) - sum(
            p for text, p in expected.items() if holds(text)
        )

    texts = [text for size in range(4) for text in itertools.product(range(3), repeat=size)]
    begins = [difference(lambda other, text=text: other[: len(text)] == text) for text in texts]
    worst = max(map(abs, begins + [difference(lambda other, text=text: other == text) for text in texts]))
    try:
        assert_exact(program, expected)
        assert worst <= 1e-12
    except NotExact as error:
        assert abs(error.worst.difference) == pytest.approx(worst, abs=1e-11)
        assert replay(program, error.uniforms) == error.outcome and error.shown.difference > 0
        assert error.shown.matched(error.outcome) >= 0 and program_distribution(program)[error.outcome] > 0


REFUSED: dict[str, tuple[Callable[[], Any], Any]] = {
    "target: found probabilities with a sum of 0.9, expected 1": (speculate, {(0,): 0.5, (1,): 0.4}),
    r"target after \(0,\): found probabilities with a sum of 1.2, expected 1": (speculate, lambda tokens: [0.6, 0.6]),
    "program: found it return 1, expected a tuple of tokens, which its target takes": (lambda: 1, after),
    "max_executions: reached 50": (lambda: [speculate(), speculate()][1], after),
}


@pytest.mark.parametrize(("message", "case"), REFUSED.items(), ids=REFUSED)
def test_what_cannot_be_compared_is_refused(message: str, case: Any) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        assert_exact(*case, max_executions=50)


@pytest.mark.parametrize(
    ("uniforms", "message"),
    [
        ([0.5], "uniforms: found 1, expected one for each draw, and the program makes more"),
        ([0.5, 0.5, 0.5], "uniforms: found 3, expected 2, one for each draw"),
        ([0.5, 1.0], r"uniforms: found \[0.5, 1.0\], expected numbers from 0 to 1, without 1"),
    ],
)
def test_a_replay_takes_one_number_for_each_draw(uniforms: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        replay(lambda: (random.random() < 0.5, draw((0.5, 0.2, 0.3))), uniforms)


def test_a_replay_draws_the_numbers_themselves() -> None:
    def program() -> tuple[Any, ...]:
        number = random.random()
        return number < 0.7, int(number * 8), 1 - number > 0.25, draw((0.0, 0.5, 0.5)), random.choice("abcd")

    assert replay(program, [0.6875, 0.0, 0.5]) == (True, 5, True, 1, "c")
    assert replay(program, [0.75, 0.5, 0.999]) == (False, 6, False, 2, "d")
    assert replay(lambda: tuple(np.log(np.random.rand(2) + 1)), [0.0, 0.5]) == (0.0, np.log(1.5))  # noqa: NPY002


@pytest.mark.torch
def test_programs_that_draw_with_torch() -> None:
    torch = pytest.importorskip("torch")
    from pass_sampling.gpu.exactness.torch_draws import torch_random

    probs = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)

    def program(shift: float = 0.0) -> tuple[int, ...]:
        token = int(torch.multinomial(probs, 1, generator=torch.Generator().manual_seed(1)))
        return token, int(torch.rand(1, dtype=torch.float64) < probs[token] + shift)

    target = {(token, yes): p * (p if yes else 1 - p) for token, p in enumerate(probs.tolist()) for yes in (0, 1)}
    assert assert_exact(program, target, [torch_random]).executions == 6
    with pytest.raises(NotExact) as failure:
        assert_exact(lambda: program(0.1), target, [torch_random])
    assert replay(lambda: program(0.1), failure.value.uniforms, [torch_random]) == failure.value.outcome
    numbers = [0.25, 0.75, 0.5]
    drawn = replay(
        lambda: tuple(torch.rand(2).log().exp_().tolist() + torch.empty(1).uniform_(1, 3).tolist()),
        numbers,
        [torch_random],
    )
    assert drawn == pytest.approx((0.25, 0.75, 2.0))
    single = torch.tensor([0.1, 0.9])
    with pytest.raises(NotExact, match=r"compute in float64, or pass a tolerance$"):
        assert_exact(
            lambda: int(torch.multinomial(single.softmax(0), 1)), {0: 0.31002551, 1: 0.68997449}, [torch_random]
        )
    assert_exact(
        lambda: int(torch.multinomial(single.softmax(0), 1)), {0: 0.31002551, 1: 0.68997449}, [torch_random], 1e-6
    )
    with pytest.raises(HiddenRandomness, match=r"replace=\[torch_random\]"):
        assert_exact(lambda: torch.rand(()).item() < 0.5, {True: 0.5, False: 0.5})
