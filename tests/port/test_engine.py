"""The engine: every request's text is the one it has alone, whatever is decoded beside it, and in fixed shapes too."""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

import pass_sampling.gpu as port
import pass_sampling.reference as reference
from models import TINY, exact_target, transformer
from pass_sampling.gpu.engine.capture import Captured, Frozen, standing
from pass_sampling.gpu.engine.engine import Engine, Request
from pass_sampling.gpu.engine.rows import empty_rows, put_row
from pass_sampling.gpu.lookahead.head import BlockHeads
from pass_sampling.gpu.lookahead.refinement import refinement_of
from pass_sampling.gpu.lookahead.rescoring import NgramScores, Rescored
from pass_sampling.gpu.methods import Blockwise, BlockwisePaths
from pass_sampling.gpu.uniforms import uniform_stream
from pass_sampling.reference.exactness.cases import bigrams
from pass_sampling.reference.exactness.distribution import output_distribution

KINDS = (
    *("plain", "lookahead", "fused", "fused head", "head alone"),
    *("draft model", "block", "heuristic", "entropy", "ngram", "tree", "k-seq", "one-call tree", "head tree"),
    *("blocks", "rescored blocks", "paths", "lookup, n-grams"),
)
on_kinds = pytest.mark.parametrize("kind", KINDS)
ENDING = port.Ending(9, (2,))
PROMPTS = [(1, 0), (2,), (0, 1, 2, 1), (1,), (2, 2, 0), (0, 0), (1, 2)]
LONG = [(2,), (1, 0), (0, 1, 2, 1) * 5, (1,), (2, 0) * 6, (0, 0), (1, 2) * 9]
EAGERLY = "the step runs eagerly, as it cannot be captured: "


def model_of(seed: int, device: str, **changes: Any) -> Any:
    config = port.ModelConfig(**TINY | changes)
    return port.Transformer(config, port.Weights.random(config, seed, device=device))


def method_of(kind: str, device: str = "cpu", **changes: Any) -> Any:
    """A method of each kind, none of whose parts is trained."""
    model, sampling = model_of(4, device, **changes), port.SamplingConfig(temperature=0.9)
    vectors = port.LookAhead.random(2, model.hidden_size, 7)
    head = port.SamplerHead.random(model.hidden_size, 5, 7)
    if kind == "plain":
        return port.Autoregressive(model, sampling)
    if kind == "lookahead":
        return port.PaSS(model, vectors, sampling)
    if "fused" in kind or kind == "head alone":
        parts = {} if kind == "fused" else {"head": replace(head, uses_lookahead=kind != "head alone")}
        return port.PaSSOneCall(model, replace(vectors, **parts), sampling)
    if kind in ("one-call tree", "head tree"):
        parts = {} if kind == "one-call tree" else {"head": head, "draft_vocab": [0, 2]}
        return port.PaSSOneCallTree(model, replace(vectors, **parts), sampling, num_candidates=(2, (1, 0)))
    if kind in ("tree", "k-seq"):
        rule = "k-seq" if kind == "k-seq" else "without-replacement"
        drafter = port.ModelDrafter(model_of(5, device)) if kind == "tree" else port.PromptLookup(model.vocab_size)
        return port.SpeculativeTree(model, drafter, sampling, rule=rule, num_candidates=(2, 1))
    if "blocks" in kind or kind == "paths":
        blocks = replace(vectors, head=BlockHeads.random(model.hidden_size, 5, 2, 7))
        drafts = refinement_of(blocks, model.dtype, device)
        rescored = Rescored(drafts, NgramScores(bigrams(port, model.vocab_size).to(device)), width=2)
        if kind == "paths":
            return BlockwisePaths(model, blocks, sampling, refinement=rescored, num_paths=2)
        return Blockwise(model, blocks, sampling, refinement=drafts if kind == "blocks" else rescored)
    if kind in ("ngram", "lookup, n-grams"):
        drafter = port.PromptLookup(model.vocab_size)
        if kind != "ngram":
            drafter = port.FirstOf((drafter, bigrams(port, model.vocab_size).to(device)))
        return port.SpeculativeSampling(model, drafter, sampling, num_draft=2)
    settings = {"block": {"rule": "block"}, "heuristic": {"schedule": port.Heuristic(2)}}
    settings |= {"entropy": {"schedule": port.EntropyBound()}}
    drafter = port.ModelDrafter(model_of(5, device))
    return port.SpeculativeSampling(model, drafter, sampling, num_draft=2, **settings.get(kind, {}))


def requests_of(prompts: Any) -> Any:
    return (Request(number, prompt) for number, prompt in enumerate(prompts))


def alone(method: Any, prompts: Any, ending: Any = ENDING) -> list[Any]:
    """The text of each request where nothing is decoded beside it."""
    return [
        port.generate(method, prompt, ending.max_new_tokens, ending.eos_token_ids, seed=3, request=number)
        for number, prompt in enumerate(prompts)
    ]


def same_records(found: Any, expected: Any) -> None:
    """Tokens could be the same by chance, of three: so are all recorded probabilities, up to rounding."""
    for name in ("tokens", "end", "sources", "num_positions", "num_draft_tokens"):
        assert getattr(found, name) == getattr(expected, name)
    for mine, yours in zip(found.records, expected.records, strict=True):
        for name in ("log_probs", "draft_token_probs", "target_token_probs", "accept_probs"):
            assert getattr(mine, name) == pytest.approx(getattr(yours, name), abs=1e-12, nan_ok=True)


def all_as_alone(found: dict[int, Any], method: Any, prompts: Any, ending: Any = ENDING) -> None:
    assert sorted(found) == list(range(len(prompts)))
    for number, expected in enumerate(alone(method, prompts, ending)):
        same_records(found[number], expected)


def uniforms(method: Any, requests: list[int], step: int) -> Any:
    return uniform_stream(3, requests, step, method.num_uniforms)


def filled(method: Any, prompts: Any, ending: Any = ENDING) -> tuple[Any, list[Any]]:
    """A state with one row a prompt, after the first step of each; and the tokens that these steps committed."""
    state, texts = empty_rows(method, ending, len(prompts), 4), []
    for number, prompt in enumerate(prompts):
        first, batch = method.step(method.start(prompt, ending), uniforms(method, [number], 0))
        texts.append(batch.rows()[0].tokens)
        state = put_row(state, number, first)
    return state, texts


@pytest.mark.parametrize("num_rows", [1, 3, 8])
@on_kinds
def test_a_request_has_the_text_that_it_has_alone(kind: str, num_rows: int) -> None:
    """In float64, record by record; more requests than rows, or fewer."""
    method, heard = method_of(kind), [[] for _ in PROMPTS]
    engine = Engine(method, ENDING, num_rows, longest_prompt=4, seed=3)
    found = dict(engine.run(requests_of(PROMPTS), lambda number, record: heard[number].append(record)))
    assert [tuple(records) for records in heard] == [found[number].records for number in range(len(PROMPTS))]
    all_as_alone(found, method, PROMPTS)


@pytest.mark.gpu
@on_kinds
def test_captured_steps_make_the_texts_of_eager_ones(kind: str) -> None:
    """On a GPU, in float64."""
    method = method_of(kind, "cuda")
    engine = Engine(method, ENDING, 3, longest_prompt=4, seed=3)
    found = dict(engine.run(requests_of(PROMPTS)))
    assert engine._captured is not None, "the step was not captured"
    assert [found[number].tokens for number in range(len(PROMPTS))] == [text.tokens for text in alone(method, PROMPTS)]


@on_kinds
def test_fixed_shapes_make_the_same_texts(kind: str) -> None:
    """A step whose shapes depend on nothing in its tensors, as one that is captured; its state stays where it is."""
    method = method_of(kind)
    state, texts = filled(method, PROMPTS)
    frozen = Frozen(method, standing(state), state.cache.capacity)
    names = ("tokens", "lengths", "lookahead_hidden", "pace")
    places = [getattr(frozen.state, name).data_ptr() for name in names]
    for step in range(1, 10):
        record = frozen.step(uniforms(method, list(range(len(PROMPTS))), step))
        texts = [text + row.tokens for text, row in zip(texts, record.rows(), strict=True)]
        assert places == [getattr(frozen.state, name).data_ptr() for name in names]
    assert texts == [text.tokens for text in alone(method, PROMPTS)]


class FixedShapes:
    """A method whose states have fixed shapes from the beginning."""

    def __init__(self, method: Any):
        self._method = method

    def __getattr__(self, name: str) -> Any:
        return getattr(self._method, name)

    def start(self, prompt: Any, ending: Any) -> Any:
        state = self._method.start(prompt, ending)
        for cache in state.caches:
            cache.fix(cache.capacity)
        return state


@on_kinds
def test_the_distribution_of_a_step_in_fixed_shapes_is_the_targets(kind: str) -> None:
    distribution = output_distribution(FixedShapes(method_of(kind)), (1, 0), port.Ending(4, (2,)))
    sampling, ending = reference.SamplingConfig(temperature=0.9), reference.Ending(4, (2,))
    target = exact_target(transformer(reference, 4), sampling, (1, 0), ending)
    assert distribution.largest_deviation(target) <= 1e-12


def replayed(run: Any) -> tuple[Any, Any]:
    """Stand in for a graph on a CPU: run the step again as it was, with its record in the same place."""
    record = run()

    def launch() -> None:
        again = run()
        for name, tensor in vars(record).items():
            if hasattr(tensor, "copy_"):
                tensor.copy_(getattr(again, name))

    return launch, record


def captured_engine(method: Any, ending: Any, make: Any, num_rows: int = 2, longest_prompt: int = 20) -> Any:
    """An engine that replays steps and reads them one step late, as on a GPU; they first read 4 cache positions."""
    engine = Engine(method, ending, num_rows, longest_prompt, seed=3)
    engine._captured = Captured(method, standing(engine._state), make, least_kv_length=4)
    engine._state = engine._captured.state
    return engine


@pytest.mark.parametrize("window", [None, 3])
@on_kinds
def test_replayed_steps_see_as_much_as_the_longest_text_needs(kind: str, window: int | None) -> None:
    """Longer prompts come in while shorter texts are under way, and the host reads one step late."""
    method = method_of(kind, sliding_window=window)
    engine = captured_engine(method, ENDING, replayed)
    all_as_alone(dict(engine.run(requests_of(LONG))), method, LONG)
    assert len(engine._captured.graphs) > 1


NO_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
FORBIDDEN = RuntimeError("operation not permitted when stream is capturing\nmore of it")


@pytest.mark.parametrize("late, error", [(0, FORBIDDEN), (2, FORBIDDEN), (2, NO_MEMORY), (None, None)])
def test_where_capture_fails_the_step_runs_eagerly_from_where_it_was(late, error, caplog):
    """At the first length, at a later one, without memory for a graph, or on a CPU: one warning, and the same texts."""
    method, made = method_of("fused head"), iter(range(100))

    def fails(run: Callable[[], Any]) -> Any:
        if next(made) >= late:
            run()
            raise error
        return replayed(run)

    with caplog.at_level(logging.WARNING):
        if late is None:
            engine, reason = Engine(method, ENDING, 2, 20, seed=3, captures=True), "it runs on cpu, not on a GPU"
        else:
            engine, reason = captured_engine(method, ENDING, fails), str(error).partition("\n")[0]
        found = dict(engine.run(requests_of(LONG)))
    assert [record.getMessage() for record in caplog.records] == [EAGERLY + reason]
    all_as_alone(found, method, LONG)


@pytest.mark.parametrize("captures", [False, True])
def test_whoever_leaves_early_finds_everything_when_coming_back(captures: bool) -> None:
    """Also where a callback raises: no record is lost, none is heard twice but the one that raised."""
    method = method_of("draft model")
    engine = captured_engine(method, ENDING, replayed, 3) if captures else Engine(method, ENDING, 3, 20, seed=3)
    requests, found, calls = requests_of(LONG), {}, iter(range(1000))

    def sometimes_raises(number: int, record: Any) -> None:
        if next(calls) % 5 == 3:
            raise KeyError(number)

    while len(found) < len(LONG):
        try:
            for number, text in engine.run(requests, sometimes_raises):
                assert number not in found
                found[number] = text
                break
        except KeyError:
            continue
    all_as_alone(found, method, LONG)


def test_a_model_of_transformers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from pass_sampling.gpu.hf.rows import RowCaches  # loads transformers

    method = method_of("plain")
    with monkeypatch.context() as patch:
        made = lambda capacity, num_rows: RowCaches([], torch.zeros(num_rows, dtype=torch.int64), capacity)  # noqa: E731
        patch.setattr(method.model, "new_cache", made)
        with pytest.raises(ValueError, match=r"^method: found a model of transformers, expected this package's own, "):
            Engine(method, ENDING, 2, 4)
    all_as_alone(dict(Engine(method, ENDING, 2, 4, seed=3).run(requests_of(PROMPTS))), method, PROMPTS)


def test_what_does_not_fit_is_refused() -> None:
    method = method_of("plain")
    longest = method.model.max_position_embeddings
    with pytest.raises(ValueError, match=f"^max_new_tokens: found a prompt of {longest} tokens and 8 new ones"):
        Engine(method, port.Ending(8), 2, longest_prompt=longest)
    with pytest.raises(ValueError, match=r"^num_rows: found 0, expected an integer from 1 to 65536$"):
        Engine(method, port.Ending(8), 0)
    engine = Engine(method, port.Ending(8), 2, longest_prompt=3)
    with pytest.raises(ValueError, match=r"^prompt: found 4 tokens, expected at most 3, longest_prompt$"):
        list(engine.run([Request(0, (0, 1, 2, 1))]))
