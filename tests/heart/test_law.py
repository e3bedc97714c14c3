"""The output distribution of every method, enumerated from the running steps, equals the target's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import pass_sampling.reference as reference
from models import PACKAGES, WINDOWED, exact_target, lookahead, package, table, transformer
from pass_sampling.reference.exactness.distribution import OutputDistribution, output_distribution

EXACT = 1e-12
PROMPT = (1, 0)

SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "temperature": {"temperature": 0.6},
    "hot": {"temperature": 1.7},
    "greedy": {"temperature": 0.0},
    "top-k": {"top_k": 2},
    "top-p": {"top_p": 0.75},
    "all": {"temperature": 0.8, "top_k": 2, "top_p": 0.9},
}
DRAFT_SETTINGS: dict[str, dict[str, Any] | None] = {
    "alike": None,
    "greedy-draft": {"temperature": 0.0},
    "narrow-draft": {"temperature": 0.7, "top_k": 2},
}


def distribution_of(pkg: Any, method: Any, ending: dict[str, Any], **options: Any) -> OutputDistribution:
    return output_distribution(method, PROMPT, pkg.Ending(**ending), **options)


def wanted(make: Any, sampling: dict[str, Any], ending: dict[str, Any], **options: Any) -> OutputDistribution:
    model = make(reference)
    return exact_target(model, reference.SamplingConfig(**sampling), PROMPT, reference.Ending(**ending), **options)


def assert_exact(distribution: OutputDistribution, target: OutputDistribution, verified_steps: int = 0) -> None:
    assert distribution.largest_deviation(target) <= EXACT
    assert abs(sum(distribution.values()) - 1.0) <= EXACT
    assert set(distribution) <= set(target), "a sequence came out that the target cannot produce"
    assert sum(count > 0 for count in distribution.verified) >= verified_steps, distribution.verified


@pytest.mark.parametrize("name", PACKAGES)
@pytest.mark.parametrize("sampling", SETTINGS)
@pytest.mark.parametrize("zeros", [0.0, 0.2])
def test_autoregressive_distribution_is_the_target(name: str, sampling: str, zeros: float) -> None:
    pkg = package(name)
    ending = {"max_new_tokens": 5, "eos_token_ids": (2,)}

    def make(package_: Any) -> Any:
        return table(package_, seed=3, zeros=zeros)

    method = pkg.Autoregressive(make(pkg), pkg.SamplingConfig(**SETTINGS[sampling]))
    assert_exact(distribution_of(pkg, method, ending), wanted(make, SETTINGS[sampling], ending))


@pytest.mark.parametrize("name", PACKAGES)
@pytest.mark.parametrize("rule", ["token", "block", "match"])
@pytest.mark.parametrize("sampling", SETTINGS)
@pytest.mark.parametrize("draft", DRAFT_SETTINGS)
def test_pass_distribution_is_the_target_on_tables(name: str, rule: str, sampling: str, draft: str) -> None:
    """V = 3, K = 2, a different row at every prefix, long enough that a second drafted step is verified."""
    pkg = package(name)
    greedy = sampling == "greedy"  # one path only, so a longer one
    ending = {"max_new_tokens": 9 if greedy else 6, "eos_token_ids": () if greedy else (2,)}

    def make(package_: Any) -> Any:
        return table(package_, seed=12, zeros=0.1, spread=1.0)

    model, own = make(pkg), DRAFT_SETTINGS[draft]
    method = pkg.PaSS(
        model,
        model.lookahead(),
        pkg.SamplingConfig(**SETTINGS[sampling]),
        None if own is None else pkg.SamplingConfig(**own),
        rule,
    )
    distribution = distribution_of(pkg, method, ending)
    assert_exact(distribution, wanted(make, SETTINGS[sampling], ending), verified_steps=2)


@pytest.mark.parametrize("name", PACKAGES)
@pytest.mark.parametrize("rule", ["token", "block", "match"])
@pytest.mark.parametrize("model", ["full", "windowed"])
@pytest.mark.parametrize("sampling", ["plain", "all", "greedy"])
def test_pass_distribution_is_the_target_on_a_transformer(name: str, rule: str, model: str, sampling: str) -> None:
    """A cache, rotary positions and a sliding window shorter than the text are under the distribution too."""
    pkg = package(name)
    greedy = sampling == "greedy"  # one path only, so a longer one
    ending = {"max_new_tokens": 9 if greedy else 6, "eos_token_ids": () if greedy else (0,)}
    shape = WINDOWED if model == "windowed" else {}

    def make(package_: Any) -> Any:
        return transformer(package_, seed=4, **shape)

    target = make(pkg)
    method = pkg.PaSS(target, lookahead(pkg, target), pkg.SamplingConfig(**SETTINGS[sampling]), rule=rule)
    distribution = distribution_of(pkg, method, ending)
    assert_exact(distribution, wanted(make, SETTINGS[sampling], ending), verified_steps=2)


@pytest.mark.parametrize("name", PACKAGES)
@pytest.mark.parametrize("rule", ["token", "block", "match"])
@pytest.mark.parametrize("num_lookahead", [0, 1, 2, 3])
def test_any_number_of_lookahead_vectors(name: str, rule: str, num_lookahead: int) -> None:
    pkg = package(name)
    ending = {"max_new_tokens": 5}

    def make(package_: Any) -> Any:
        return table(package_, num_lookahead=num_lookahead, seed=2)

    model = make(pkg)
    method = pkg.PaSS(model, model.lookahead(), rule=rule)
    assert_exact(distribution_of(pkg, method, ending), wanted(make, {}, ending))


@pytest.mark.parametrize("name", PACKAGES)
@pytest.mark.parametrize("num_tokens", [1, 2, 3, 4])
def test_first_tokens_of_a_longer_text(name: str, num_tokens: int) -> None:
    """The first n tokens do not feel that the text goes on, nor drafts that a length limit would have cut."""
    pkg = package(name)
    ending = {"max_new_tokens": 30, "eos_token_ids": (2,)}

    def make(package_: Any) -> Any:
        return table(package_, seed=8)

    model = make(pkg)
    distribution = distribution_of(pkg, pkg.PaSS(model, model.lookahead()), ending, num_tokens=num_tokens)
    assert_exact(distribution, wanted(make, {}, ending, num_tokens=num_tokens))


@pytest.mark.parametrize("name", PACKAGES)
def test_fixed_token_baseline_is_exact(name: str) -> None:
    """Without trained vectors the drafts are poor, and the distribution is the same."""
    pkg = package(name)
    ending = {"max_new_tokens": 5, "eos_token_ids": (2,)}

    def make(package_: Any) -> Any:
        return table(package_, seed=5)

    method = pkg.PaSS(make(pkg), None, num_lookahead=2, fixed_token=1)
    assert_exact(distribution_of(pkg, method, ending), wanted(make, {}, ending), verified_steps=1)


def repetition_penalty(prefix: tuple[int, ...], logits: Any) -> Any:
    """Lower what has been said before, the more the more often, and ban a third repetition in a row."""
    processed = logits.copy() if isinstance(logits, np.ndarray) else logits.clone()
    for token in range(len(logits)):
        processed[token] = processed[token] - 0.4 * prefix.count(token)
    if len(prefix) >= 2 and prefix[-1] == prefix[-2]:
        processed[prefix[-1]] = -np.inf
    return processed


@pytest.mark.parametrize("name", PACKAGES)
@pytest.mark.parametrize("rule", ["token", "block", "match"])
def test_processor_runs_on_every_prefix_of_a_block(name: str, rule: str) -> None:
    pkg = package(name)
    ending = {"max_new_tokens": 6}

    def make(package_: Any) -> Any:
        return table(package_, seed=6)

    model = make(pkg)
    sampling = {"temperature": 0.9, "top_p": 0.95}
    method = pkg.PaSS(
        model,
        model.lookahead(),
        pkg.SamplingConfig(**sampling),
        rule=rule,
        processor=repetition_penalty,
    )
    distribution = distribution_of(pkg, method, ending)
    assert_exact(distribution, wanted(make, sampling, ending, processor=repetition_penalty), verified_steps=2)


def in_letters(tokens: Any) -> str:
    return "".join("abc"[token] for token in tokens)


def in_one_run_of_bytes(tokens: Any) -> str:
    try:
        return b"".join((b"\xc3", b"\xa9", b"c")[token] for token in tokens).decode()
    except UnicodeDecodeError:
        return "\ufffd" * len(tokens)


@pytest.mark.parametrize("name", PACKAGES)
@pytest.mark.parametrize(("decode", "stops"), [(in_letters, ("ba", "cc")), (in_one_run_of_bytes, ("é", "cc"))])
def test_stop_strings_end_the_text_inside_an_accepted_block(name: str, decode: Any, stops: tuple[str, ...]) -> None:
    """Though one token more may turn the whole text into U+FFFD."""
    pkg = package(name)
    ending = {"max_new_tokens": 6, "stop_strings": stops, "decode": decode}

    def make(package_: Any) -> Any:
        return table(package_, seed=9)

    model = make(pkg)
    distribution = distribution_of(pkg, pkg.PaSS(model, model.lookahead()), ending)
    assert_exact(distribution, wanted(make, {}, ending), verified_steps=2)
    assert any(len(tokens) < 6 for tokens in distribution)


@pytest.mark.parametrize("name", PACKAGES)
@pytest.mark.parametrize("method_name", ["Autoregressive", "PaSS-token", "PaSS-match"])
@pytest.mark.parametrize("kind", ["table", "transformer"])
def test_unmerged_enumeration_agrees(name: str, method_name: str, kind: str) -> None:
    """Every path continued on its own, from the very cache that it left: nothing is assumed about states."""
    pkg = package(name)
    ending = {"max_new_tokens": 5 if kind == "table" else 4, "eos_token_ids": (2,)}

    def make(package_: Any) -> Any:
        return table(package_, seed=1) if kind == "table" else transformer(package_, seed=1, sliding_window=2)

    model = make(pkg)
    if method_name == "Autoregressive":
        method = pkg.Autoregressive(model)
    else:
        method = pkg.PaSS(model, lookahead(pkg, model), rule=method_name.split("-")[1])
    merged, unmerged = (distribution_of(pkg, method, ending, merge=merge) for merge in (True, False))
    assert merged.largest_deviation(unmerged) <= EXACT
    assert_exact(unmerged, wanted(make, {}, ending))
    assert unmerged.executions > merged.executions or method_name == "Autoregressive"


def end_or_ban(prefix: tuple[int, ...], logits: Any) -> Any:
    """Know nothing to say after the end of a text, as grammars do."""
    processed = logits.copy() if isinstance(logits, np.ndarray) else logits.clone()
    if 2 in prefix[len(PROMPT) :]:
        processed[:] = -np.inf
    return processed


@pytest.mark.parametrize("name", PACKAGES)
@pytest.mark.parametrize("rule", ["token", "block", "match"])
def test_nothing_is_asked_after_a_drafted_end(name: str, rule: str) -> None:
    """PaSS never fails where plain decoding cannot, and drafts that end the text keep the distribution."""
    pkg = package(name)
    ending = {"max_new_tokens": 6, "eos_token_ids": (2,)}

    def make(package_: Any) -> Any:
        return table(package_, seed=13, spread=1.0)

    model = make(pkg)
    method = pkg.PaSS(model, model.lookahead(), rule=rule, processor=end_or_ban)
    distribution = distribution_of(pkg, method, ending)
    assert_exact(distribution, wanted(make, {}, ending, processor=end_or_ban), verified_steps=2)


@pytest.mark.parametrize("name", PACKAGES)
@pytest.mark.parametrize("rule", ["token", "block", "match"])
def test_a_row_without_a_distribution_matters_only_where_the_text_comes(name: str, rule: str) -> None:
    """Look-ahead rows without a distribution end the draft; target rows without one matter once reached."""
    pkg = package(name)
    ending = {"max_new_tokens": 5}

    def dead_end(prefix: tuple[int, ...], logits: Any) -> Any:
        processed = logits.copy() if isinstance(logits, np.ndarray) else logits.clone()
        if 1 in prefix[len(PROMPT) :]:
            processed[:] = np.nan
        elif asked_for_target[0]:
            processed[1] = -np.inf
        return processed

    asked_for_target = [True]
    model = table(pkg, seed=14)
    drafting = pkg.PaSS._draft

    class Careless(pkg.PaSS):  # drafts what the target bans
        def _draft(self, *args: Any) -> Any:
            asked_for_target[0] = False
            try:
                return drafting(self, *args)
            finally:
                asked_for_target[0] = True

    distribution = distribution_of(pkg, Careless(model, model.lookahead(), rule=rule, processor=dead_end), ending)
    reference_model = table(reference, seed=14)
    target = exact_target(
        reference_model, reference.SamplingConfig(), PROMPT, reference.Ending(**ending), processor=dead_end
    )
    assert_exact(distribution, target)
    assert not any(1 in tokens for tokens in distribution)


@pytest.mark.slow
@pytest.mark.parametrize("name", PACKAGES)
@pytest.mark.parametrize("rule", ["token", "block", "match"])
@pytest.mark.parametrize("sampling", ["plain", "all"])
def test_pass_distribution_with_more_tokens_and_drafts(name: str, rule: str, sampling: str) -> None:
    """V = 4, K = 3, seven tokens, and every execution run again at both ends of its cells."""
    pkg = package(name)
    ending = {"max_new_tokens": 7, "eos_token_ids": (3,)}

    def make(package_: Any) -> Any:
        return table(package_, vocab_size=4, num_lookahead=3, seed=15, zeros=0.05, spread=1.5)

    model = make(pkg)
    method = pkg.PaSS(model, model.lookahead(), pkg.SamplingConfig(**SETTINGS[sampling]), rule=rule)
    distribution = distribution_of(pkg, method, ending, probe=True)
    assert_exact(distribution, wanted(make, SETTINGS[sampling], ending), verified_steps=2)
