"""What sees bugs that leave the distribution alone: each check passes on the right code and fails on the wrong."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import pass_sampling.reference as reference
from adapters import PORT, REFERENCE, Reference
from brute_force import SETTINGS
from exactness_tools import distribution_after
from gallery_tools import PROMPT, TABLE, Site
from models import lookahead, table
from pass_sampling.reference.exactness.distribution import output_distribution


def adapter(site: Site) -> Reference:
    return REFERENCE if site.single else PORT


def refused(call: Callable[..., Any], *args: Any, **options: Any) -> bool:
    """Say whether a call raises a ValueError."""
    try:
        call(*args, **options)
    except ValueError:
        return True
    return False


SIX = {"vocab_size": 6, "num_lookahead": 3, "seed": 4, "spread": 1.0}  # a table whose drafts are accepted often enough


def method(site: Site, **options: Any) -> Any:
    """Return PaSS over the table of 6 tokens."""
    model = table(site.pkg, **SIX)
    return site.pass_type()(model, model.lookahead(), **options)


def generations(site: Site, count: int = 8, eos_token_ids: tuple[int, ...] = (5,)) -> Iterator[Any]:
    """Yield generations of some seeds."""
    for seed in range(count):
        yield site.pkg.generate(method(site), PROMPT, 20, eos_token_ids, seed=seed)


def a_uniform_serves_one_decision(site: Site) -> None:
    for result in generations(site):
        assert result.tokens


def the_enumeration_accepts_the_step(site: Site) -> None:
    distribution = output_distribution(site.method(TABLE), PROMPT, TABLE.ending(site.pkg), probe=True, untraced=True)
    assert abs(sum(distribution.values()) - 1.0) <= 1e-12


def an_impossible_draft_is_rejected_at_a_uniform_of_0(site: Site) -> None:
    target, draft = np.array([[[0.0, 1.0], [0.5, 0.5]]]), np.array([[[0.5, 0.5]]])
    accepted, token, _ = adapter(site).verify("token", target, draft, np.array([[0]]), np.zeros((1, 2)))
    assert (accepted.tolist(), token.tolist()) == ([0], [1])


def a_residual_of_one_ulp_is_a_distribution(site: Site) -> None:
    draft = np.array([0.3, 0.7])
    residual = adapter(site).residual(np.array([np.nextafter(0.3, 0.0), 0.7]), draft)
    assert abs(residual.sum() - 1.0) <= 1e-12


def uniforms_have_53_bits(site: Site) -> None:
    home = site.module("generation")
    row = home.uniform_stream(1, 0, 0, 64) if site.single else home.uniform_streams(1, [0], 0, 1, 64)
    numbers = np.asarray(row) * 2.0**24
    assert np.any(numbers != np.floor(numbers)), "64 numbers of 53 bits, all with 29 zeros at the end, is no chance"


def _pass(site: Site, model: Any, cache: Any, tokens: list[int]) -> np.ndarray:
    inputs = model.embed(tokens if site.single else [tokens])
    return np.asarray(model.hidden(inputs, cache)).reshape(len(tokens), -1)


def _cached(site: Site) -> tuple[Any, Any]:
    """Return a model and a cache of three tokens."""
    model = table(site.pkg, seed=3)
    cache = model.new_cache()
    _pass(site, model, cache, [0, 1, 2])
    return model, cache


def a_cache_cut_to_nothing_is_new(site: Site) -> None:
    model, cache = _cached(site)
    cache.truncate(0 if site.single else site.xp.tensor([0]))
    assert np.array_equal(_pass(site, model, cache, [2, 1]), _pass(site, model, model.new_cache(), [2, 1]))


def a_cut_to_what_is_not_cached_is_refused(site: Site) -> None:
    _, cache = _cached(site)
    for length in (-1, 4):
        assert refused(cache.truncate, length if site.single else site.xp.tensor([length]))


def drafts_come_from_the_distribution_after_prefix_and_vectors(site: Site) -> None:
    """The draft distributions are those of one fresh pass of the specification, without a cache."""
    model = table(reference, **SIX)
    for result in generations(site, count=3, eos_token_ids=()):
        prefix = PROMPT
        for record in result.records:
            for i, (token, prob) in enumerate(zip(record.draft_tokens, record.draft_token_probs, strict=True)):
                site.passes = 99  # passes here belong to no step
                assert math.isclose(distribution_after(model, prefix, i + 1)[token], prob, abs_tol=1e-12)
            prefix += record.tokens


def vectors_of_another_model_are_refused(site: Site) -> None:
    model, other = table(site.pkg, vocab_size=6), table(site.pkg, vocab_size=7)
    assert refused(site.pkg.PaSS, model, other.lookahead())


def a_row_without_a_distribution_is_refused(site: Site) -> None:
    def broken(prefix: tuple[int, ...], logits: Any) -> Any:
        return logits * math.nan if len(prefix) > 6 else logits

    assert refused(site.pkg.generate, method(site, processor=broken), PROMPT, 20, ())


def log_probabilities_are_the_targets(site: Site) -> None:
    model = table(reference, **SIX)
    for result in generations(site, count=3):
        for i, (token, value) in enumerate(zip(result.tokens, result.log_probs, strict=True)):
            probs = distribution_after(model, (*PROMPT, *result.tokens[:i]))
            assert math.isclose(value, math.log(probs[token]), abs_tol=1e-12)


def counters_count_what_is_committed(site: Site) -> None:
    for result in generations(site):
        assert result.num_accepted_tokens == result.sources.count("accepted")
        for record in result.records:
            has_final = record.final_token is not None
            assert len(record.tokens) == 1 + record.num_accepted + has_final


def the_stream_is_the_text(site: Site) -> None:
    for seed in range(8):
        seen: list[int] = []
        result = site.pkg.generate(
            method(site), PROMPT, 20, (5,), seed=seed, callback=lambda _, record, seen=seen: seen.extend(record.tokens)
        )
        assert tuple(seen) == result.tokens


def what_was_shown_is_never_taken_back(site: Site) -> None:
    decoder, tokens = site.module("text.token_decoder"), [0, 0, 1, 2]
    ending = site.pkg.Ending(9, (), ("bc",), decoder.TokenDecoder(lambda token: decoder.Piece("abc"[token])))
    for count in range(len(tokens)):
        assert ending.text(tokens).startswith(ending.written().after(tokens[:count]).news)


def positions_stay_below_the_limit(site: Site) -> None:
    seen: list[int] = []
    model = table(site.pkg, num_lookahead=3, max_position_embeddings=12)
    hidden = model.hidden

    def spy(inputs: Any, cache: Any, *rest: Any) -> Any:
        length = cache.length if site.single else int(cache.lengths.max())
        seen.append(length + inputs.shape[-2])
        return hidden(inputs, cache, *rest)

    model.hidden = spy
    right_or_wrong = site.pass_type()(model, lookahead(site.pkg, model))
    for seed in range(8):
        site.pkg.generate(right_or_wrong, [1, 2, 1], 9, (), seed=seed)
    assert max(seen) <= 12


def another_seed_gives_another_text(site: Site) -> None:
    assert len({result.tokens for result in generations(site, eos_token_ids=())}) == 8


def texts_come_as_often_as_by_brute_force(site: Site) -> None:
    setting = SETTINGS["stop strings in a transformer"]
    running = setting.case.method(site.pkg, "pass", "token")
    assert setting.misfit(setting.draw(site.pkg, running, 2_000 if site.single else 6_000)) <= 1.0


def the_same_seed_gives_the_same_text(site: Site) -> None:
    first, second = ([result.tokens for result in generations(site)] for _ in range(2))
    assert first == second


def a_row_of_a_batch_is_the_row_alone(site: Site) -> None:
    prompts = [[1], [2, 3, 4, 5], [0, 0], [3, 1, 4]]
    batch = site.pkg.generate_batch(method(site), prompts, 20, (5,), seed=2)
    for request, (prompt, row) in enumerate(zip(prompts, batch, strict=True)):
        alone = site.pkg.generate(method(site), prompt, 20, (5,), seed=2, request=request)
        assert alone.tokens == row.tokens
    assert len({len(row.tokens) for row in batch}) > 1, "rows should end at different times"
