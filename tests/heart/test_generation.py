"""What every generation keeps to: its ends, its seeds, its neighbours; and what its records add up to."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pass_sampling.reference as reference
from models import PACKAGES, TINY, lookahead, package, table, transformer
from pass_sampling.reference.record import Generation, Record

LETTERS = "abcdefgh"


def decode(tokens: Any) -> str:
    return "".join(LETTERS[token] for token in tokens)


def methods(pkg: Any, model: Any, sampling: Any) -> list[Any]:
    vectors = lookahead(pkg, model, num_lookahead=3)
    make, settings = (table, {"num_lookahead": 0}) if hasattr(model, "lookahead") else (transformer, {})
    drafter = pkg.ModelDrafter(make(pkg, vocab_size=model.vocab_size, seed=99, **settings))
    return [
        pkg.Autoregressive(model, sampling),
        pkg.PaSS(model, vectors, sampling),
        pkg.PaSS(model, vectors, sampling, rule="match"),
        pkg.PaSS(model, None, sampling, num_lookahead=2),
        pkg.PaSSOneCall(model, vectors, sampling),
        pkg.SpeculativeSampling(model, drafter, sampling, num_draft=3),
        pkg.SpeculativeSampling(model, pkg.ModelDrafter(model), sampling, rule="block", schedule=pkg.Heuristic(1)),
    ]


@pytest.fixture(params=PACKAGES)
def pkg(request: pytest.FixtureRequest) -> Any:
    return package(request.param)


@pytest.mark.parametrize("name", PACKAGES)
@given(
    max_new_tokens=st.integers(1, 14),
    eos=st.sets(st.integers(0, 7), max_size=3),
    stops=st.lists(st.text(LETTERS[:3], min_size=1, max_size=3), max_size=2),
    greedy=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_ends_exactly_where_plain_decoding_of_the_same_text_would(name, max_new_tokens, eos, stops, greedy, seed):
    pkg = package(name)
    model = table(pkg, vocab_size=8, num_lookahead=3, seed=seed % 7)
    for method in methods(pkg, model, pkg.SamplingConfig(temperature=0.0 if greedy else 1.0)):
        result = pkg.generate(method, [1, 2], max_new_tokens, tuple(eos), stops, decode if stops else None, seed=seed)
        ending, count = pkg.Ending(max_new_tokens, tuple(eos), stops, decode if stops else None), len(result.tokens)
        ends = [ending.reason(result.tokens[:n]) for n in range(1, count + 1)]
        assert ends == [None] * (count - 1) + [result.end], "the text ends at its first end, and nowhere before"
        assert result.text is None or not any(stop in result.text for stop in stops)
        assert result.num_forward_passes <= len(result.tokens), "never more calls than plain decoding"


@pytest.mark.parametrize("rule", ["token", "block", "match"])
def test_recorded_log_probabilities_are_the_targets(pkg: Any, rule: str) -> None:
    """Every emitted token carries the log-probability that a fresh pass of the target gives it."""
    settings = {"temperature": 0.8, "top_k": 5}
    model = transformer(pkg, seed=8, vocab_size=12)
    method = pkg.PaSS(model, lookahead(pkg, model), pkg.SamplingConfig(**settings), rule=rule)
    result = pkg.generate(method, [1, 2], 30, seed=4)
    truth = transformer(reference, seed=8, vocab_size=12)
    plain = reference.Autoregressive(truth, reference.SamplingConfig(**settings))
    for i, (token, value) in enumerate(zip(result.tokens, result.log_probs, strict=True)):
        prefix = (1, 2, *result.tokens[:i])
        probs = plain.probs(prefix, truth.forward(prefix)[-1])
        assert math.isclose(value, math.log(probs[token]), rel_tol=0, abs_tol=1e-10)


def test_plain_decoding_goes_on_where_a_shorter_text_ended_and_methods_with_drafts_need_not(pkg: Any) -> None:
    """What the documents say of one seed and two lengths: the texts agree but for the last steps of the shorter."""
    model, short, most_drafts = table(pkg, vocab_size=8, num_lookahead=3, seed=1), 12, 3
    for method in methods(pkg, model, pkg.SamplingConfig()):
        texts = [
            [pkg.generate(method, [1], limit, eos_token_ids=(), seed=seed).tokens for limit in (short, 2 * short)]
            for seed in range(6)
        ]
        assert all(longer[: short - most_drafts - 1] == shorter[: short - most_drafts - 1] for shorter, longer in texts)
        assert all(longer[:short] == shorter for shorter, longer in texts) == isinstance(method, pkg.Autoregressive)


def test_a_row_of_a_batch_is_the_row_alone(pkg: Any) -> None:
    """Neighbours, padding and order do not matter; rows end at different times; a callback gets each token once."""
    model = transformer(pkg, seed=6, vocab_size=25, sliding_window=5)
    prompts = [np.array([1]), [2, 3, 4, 5, 6, 7, 8], (9, 9), [3, 1, 4, 1, 5]]
    for method in methods(pkg, model, pkg.SamplingConfig(temperature=0.9)):
        heard: list[list[int]] = [[] for _ in prompts]
        listen = lambda request, record, heard=heard: heard[request].extend(record.tokens)  # noqa: E731
        batch = pkg.generate_batch(method, prompts, 20, eos_token_ids=(0, 7, 13), seed=2, callback=listen)
        for request, (prompt, result) in enumerate(zip(prompts, batch, strict=True)):
            alone = pkg.generate(method, list(prompt), 20, eos_token_ids=(0, 7, 13), seed=2, request=request)
            assert alone.tokens == result.tokens == tuple(heard[request])
            assert (alone.num_forward_passes, alone.num_positions) == (result.num_forward_passes, result.num_positions)
        assert len({len(result.tokens) for result in batch}) > 1, "the rows should end at different times"
    assert pkg.generate_batch(method, [], 5) == []
    assert pkg.generate_batch(method, np.array([[0, 1]]), 5) == [pkg.generate(method, [0, 1], 5)]


def test_the_models_own_end_of_sequence_is_the_default(pkg: Any) -> None:
    model = table(pkg, vocab_size=3, seed=1, eos_token_ids=(1,))
    result = pkg.generate(pkg.Autoregressive(model), [0], 60)
    assert result.end == "eos" and result.tokens.index(1) == len(result.tokens) - 1
    assert len(pkg.generate(pkg.Autoregressive(model), [0], 60, eos_token_ids=()).tokens) == 60


def test_the_models_own_stop_strings_end_a_text_as_its_end_tokens_do(pkg, caplog):
    model = table(pkg, vocab_size=8)
    for method in methods(pkg, model, pkg.SamplingConfig()):
        model.stop_strings = ()
        plain = pkg.generate(method, [1, 2], 14)
        stop = decode(plain.tokens[2:4])
        expected = pkg.generate(method, [1, 2], 14, stop_strings=[stop], decode=decode)
        assert expected.end == "stop_string"
        model.stop_strings = (stop,)
        assert pkg.generate(method, [1, 2], 14, decode=decode) == expected
        assert pkg.generate_batch(method, [[1, 2]] * 2, 14, decode=decode)[0] == expected
        assert pkg.generate(method, [1, 2], 14, stop_strings=(), decode=decode).tokens == plain.tokens
        assert caplog.messages == []
        assert pkg.generate(method, [1, 2], 14) == plain
        assert caplog.messages == [
            f"stop_strings: found ({stop!r},) in the model's generation settings and no decode function, expected one: "
            "no text ends there"
        ]
        caplog.clear()


BAD_REQUESTS: list[tuple[dict[str, Any], str]] = [
    ({"prompt": []}, "prompt: found no tokens, expected at least one"),
    ({"prompt": [0, 3]}, "prompt: found 3 at place 1, expected a token id from 0 to 2"),
    ({"prompt": [0.5]}, "prompt: found 0.5 at place 0, expected a token id from 0 to 2"),
    ({"max_new_tokens": 2.5}, "max_new_tokens: found 2.5, expected a positive integer"),
    (
        {"prompt": [0] * 60},
        "max_new_tokens: found a prompt of 60 tokens and 5 new ones, expected at most 64 together, "
        "the max_position_embeddings of the model",
    ),
    ({"seed": -1}, "seed: found -1, expected an integer from 0 to 18446744073709551615"),
    ({"request": 2**64}, "request: found 18446744073709551616, expected an integer from 0"),
    ({"stop_strings": ("a",)}, "stop_strings: found no decode function"),
]
BAD_METHODS: list[tuple[dict[str, Any], str]] = [
    ({"rule": "typical"}, "rule: found 'typical', expected one of block, match, token"),
    ({"num_lookahead": 3}, "num_lookahead: found 3, expected an integer from 0 to 2"),
    ({"num_lookahead": 1.5}, "num_lookahead: found 1.5, expected an integer from 0 to 2"),
    ({"lookahead": None, "num_lookahead": -1}, "num_lookahead: found -1, expected an integer from 0 to 65536"),
    ({"lookahead": None, "fixed_token": 3}, "fixed_token: found 3, expected a token id from 0 to 2"),
    ({"sampling": reference.SamplingConfig(top_k=4)}, "top_k: found 4, expected at most the vocabulary size 3"),
]


@pytest.mark.parametrize(("options", "message"), [*BAD_REQUESTS, *BAD_METHODS])
def test_bad_requests_and_methods_are_refused_in_one_sentence(pkg: Any, options: dict[str, Any], message: str) -> None:
    model = table(pkg)
    with pytest.raises(ValueError, match=f"^{message}"):
        if (options, message) in BAD_METHODS:
            pkg.PaSS(model, **{"lookahead": model.lookahead(), **options})
        else:
            pkg.generate(pkg.Autoregressive(model), **{"prompt": [0], "max_new_tokens": 5, **options})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_logits_without_a_distribution_are_refused_with_their_position(pkg: Any, value: float) -> None:
    """Wherever the text comes to them: in the exact row, or in a row that verification reaches."""

    def ruin(prefix: tuple[int, ...], logits: Any) -> Any:
        if len(prefix) == 6:
            logits[:] = value if value == -math.inf else logits
            logits[1] = value
        return logits

    model = table(pkg, seed=3)
    for method in (
        pkg.Autoregressive(model, processor=ruin),
        pkg.PaSS(model, model.lookahead(), processor=ruin),
        pkg.PaSS(model, model.lookahead(), processor=ruin, rule="match"),
    ):
        for seed in range(8):
            with pytest.raises(ValueError, match=f"^logits after position 5: the largest logit is {value},"):
                pkg.generate(method, [0, 1], 20, seed=seed)


@pytest.mark.parametrize("shape", [(2,), (4,), (1,), (), (1, 3)])
def test_a_processor_must_return_one_logit_per_token(pkg: Any, shape: tuple[int, ...]) -> None:
    model = table(pkg)
    for method in (pkg.Autoregressive, lambda m, processor: pkg.PaSS(m, m.lookahead(), processor=processor)):
        with pytest.raises(ValueError, match=r"^processor: found logits of shape \(.*\), expected \(3,\)$"):
            pkg.generate(method(model, processor=lambda prefix, logits: np.zeros(shape)), [0], 4)


def test_a_decoder_is_asked_only_about_tokens_that_were_drawn(pkg: Any) -> None:
    """Not about what a processor bans, in rows that have ended or after a row's drafts."""

    def ban(prefix: tuple[int, ...], logits: Any) -> Any:
        logits[2] = -math.inf
        return logits

    def strict(tokens: Any) -> str:
        return "".join({0: "a", 1: "b"}[token] for token in tokens)

    model = table(pkg, num_lookahead=3)
    for rule in ("token", "block", "match"):
        method = pkg.PaSS(model, model.lookahead(), processor=ban, rule=rule)
        for seed in range(10):
            texts = pkg.generate_batch(method, [[0], [1, 1], [0, 1, 0]], 20, (), ["aab"], strict, seed)
            assert all("aab" not in result.text for result in texts)


def test_a_state_is_not_continued_twice_without_a_copy(pkg: Any) -> None:
    model = transformer(pkg, seed=2)
    for method in methods(pkg, model, pkg.SamplingConfig()):
        uniforms = np.full((1, method.num_uniforms), 0.4)
        row = uniforms[0] if pkg.__name__.endswith("reference") else __import__("torch").tensor(uniforms)
        state = method.start([0, 1], pkg.Ending(9))
        twin = state.copy()
        after, _ = method.step(state, row)
        with pytest.raises(ValueError, match=r"^state: found a cache that a step has moved on already"):
            method.step(state, row)
        again, _ = method.step(twin, row)
        assert after.new_tokens == again.new_tokens and after.agrees(again)


@pytest.mark.parametrize("late", [False, True], ids=["before the pass", "after the pass"])
def test_a_step_that_raises_leaves_the_prefix_in_the_cache(
    pkg: Any, late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In any of its passes: cut to the prefix, the cache is that of a fresh pass, and a copy of the state continues."""
    model, left = transformer(pkg, seed=2), [0]
    hidden = model.hidden

    def raises(*arguments: Any, **options: Any) -> Any:
        left[0] -= 1
        found = hidden(*arguments, **options) if late or left[0] else None
        if left[0] == 0:
            raise MemoryError
        return found

    monkeypatch.setattr(model, "hidden", raises)
    for method in methods(pkg, model, pkg.SamplingConfig()):
        uniforms = np.full((1, method.num_uniforms), 0.4)
        row = uniforms[0] if pkg.__name__.endswith("reference") else __import__("torch").tensor(uniforms)
        state, _ = method.step(method.start([0, 1], pkg.Ending(9)), row)
        fresh, _ = method.step(method.start([0, 1, *state.new_tokens], pkg.Ending(9)), row)  # reads the whole prefix
        expected, _ = method.step(state.copy(), row)
        for number in range(1, 9):
            failing, left[0] = state.copy(), number
            try:
                method.step(failing, row)
                left[0] = 0
                break
            except MemoryError:
                failing.keep(failing.cached)
                assert failing.cache.agrees(fresh.cache)
                found, _ = method.step(state.copy(), row)
                assert found.new_tokens == expected.new_tokens and found.agrees(expected)
        assert number > 1


def test_four_embeddings_of_token_0_draft_where_there_are_no_vectors(pkg: Any) -> None:
    model = transformer(pkg, seed=2)
    found, expected = pkg.PaSS(model, None), pkg.PaSS(model, None, num_lookahead=4, fixed_token=0)
    assert found.num_uniforms == 10 and found.vectors.tolist() == expected.vectors.tolist()


@pytest.mark.torch
def test_vectors_that_do_not_fit_the_dtype_are_refused() -> None:
    import torch

    gpu = package("gpu")
    config = gpu.ModelConfig(**TINY)
    model = gpu.Transformer(config, gpu.Weights.random(config, 0, torch.float16))
    vectors = gpu.LookAhead(torch.full((2, model.hidden_size), 1e5))
    with pytest.raises(ValueError, match=r"^lookahead: found vectors too large for float16, expected a wider dtype"):
        gpu.PaSS(model, vectors)


@pytest.mark.parametrize(
    "settings",
    [{"temperature": 0.0}, {"top_k": 3}, {"top_p": 0.5}, {"temperature": 0.7, "top_k": 9, "top_p": 0.25}],
    ids=str,
)
def test_a_text_with_ties_is_the_same_alone_and_in_company_and_greedily_that_of_plain_decoding(pkg, settings):
    """All rows of the output are one row, so all logits are equal on paper, and rounding decides nothing."""
    sampling, prompts = pkg.SamplingConfig(**settings), [[1, 2], [3, 4, 5], [7], [8, 3, 5]]
    sizes = {"vocab_size": 11, "hidden_size": 64, "intermediate_size": 90, "num_hidden_layers": 1, "head_dim": 16}
    config = pkg.ModelConfig(num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, **sizes)
    weights = pkg.Weights.random(config, 0)
    weights.output[1:] = weights.output[:1]
    model = pkg.Transformer(config, weights)
    vectors = replace(lookahead(pkg, model, 4), head=pkg.SamplerHead.random(model.hidden_size, 5, 0))
    among_few = pkg.PaSSOneCall(model, replace(vectors, draft_vocab=[1, 4, 7]), sampling)
    plain, *others = methods(pkg, model, sampling)
    plain_texts = [pkg.generate(plain, prompt, 14, ()).tokens for prompt in prompts]
    for method in (plain, *others, among_few):
        alone = [pkg.generate(method, prompt, 14, (), request=i).tokens for i, prompt in enumerate(prompts)]
        assert [text.tokens for text in pkg.generate_batch(method, prompts, 14, ())] == alone
        assert settings != {"temperature": 0.0} or alone == plain_texts


PROBS = st.floats(0, 1)


@st.composite
def steps(draw: Any) -> Record:
    """A record of PaSS: an exact token, drafts of which some are accepted, a final token."""
    num_draft = draw(st.integers(0, 4))
    num_accepted = draw(st.integers(0, num_draft))
    verified = draw(st.booleans())
    length = 2 + num_accepted if verified else 1
    drafts = num_draft if verified else 0

    def some(strategy: st.SearchStrategy[Any], count: int) -> tuple[Any, ...]:
        return tuple(draw(st.lists(strategy, min_size=count, max_size=count)))

    ids, final = st.integers(0, 9), "bonus" if num_accepted == num_draft else "correction"
    return Record(
        tokens=some(ids, length),
        sources=("exact", *["accepted"] * num_accepted, final)[:length],
        log_probs=some(st.floats(-30, 0), length),
        draft_tokens=some(ids, drafts),
        draft_token_probs=some(PROBS, drafts),
        target_token_probs=some(PROBS, drafts),
        accept_probs=some(PROBS, drafts),
        num_accepted=num_accepted if verified else 0,
        final_token=draw(ids) if verified else None,
        num_forward_passes=1 + verified,
        num_positions=draw(st.integers(1, 30)),
        num_draft_passes=draw(st.integers(0, 9)),
    )


@given(steps(), st.integers(0, 7))
def test_a_cut_drops_tokens_and_keeps_what_was_drafted(record: Record, count: int) -> None:
    before, cut = dict(vars(record)), record.cut(count)
    for name in ("tokens", "sources", "log_probs"):
        assert getattr(cut, name) == before[name][:count]
    for name in before.keys() - {"tokens", "sources", "log_probs", "final_token"}:
        assert getattr(cut, name) == before[name]
    assert cut.final_token == (before["final_token"] if count >= len(before["tokens"]) else None)
    assert vars(record) == before, "a record does not change"


@given(st.lists(steps(), min_size=1, max_size=5))
def test_counters_add_up_and_rates_are_their_ratios(records: list[Record]) -> None:
    tokens = tuple(token for record in records for token in record.tokens)
    result = Generation((1, 2), tokens, "length", tuple(records))
    drafted = [record for record in records if record.draft_tokens]
    assert result.sources == tuple(source for record in records for source in record.sources)
    assert result.log_probs == tuple(value for record in records for value in record.log_probs)
    assert result.num_drafts == len(drafted)
    assert result.num_draft_tokens == sum(len(record.draft_tokens) for record in drafted)
    assert result.num_accepted_tokens == sum(record.num_accepted for record in records)
    deepest = max(len(record.draft_tokens) for record in records)
    accepted = [sum(record.num_accepted > i for record in records) for i in range(deepest)]
    assert result.accepted_per_position == tuple(accepted) and sum(accepted) == result.num_accepted_tokens
    for name in ("num_forward_passes", "num_positions", "num_draft_passes"):
        assert getattr(result, name) == sum(getattr(record, name) for record in records)
    # each step yields its exact token, and each verification its accepted drafts and one token more
    num_final = sum(record.final_token is not None for record in records)
    assert len(result.tokens) == len(records) + result.num_accepted_tokens + num_final

    assert result.tokens_per_forward == len(tokens) / result.num_forward_passes
    assert result.positions_per_forward == result.num_positions / result.num_forward_passes
    if drafted:
        assert result.draft_acceptance_rate == result.num_accepted_tokens / result.num_draft_tokens
        assert result.mean_acceptance_length == 1 + result.num_accepted_tokens / result.num_drafts
    else:
        assert math.isnan(result.draft_acceptance_rate) and math.isnan(result.mean_acceptance_length)
