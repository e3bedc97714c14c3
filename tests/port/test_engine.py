"""The engine: every request's text is the one it has alone, whatever is decoded beside it, and in fixed shapes too."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest

import pass_sampling.reference as reference
from models import TINY, exact_target, package, transformer
from pass_sampling.reference.exactness.distribution import output_distribution

pytestmark = pytest.mark.torch
KINDS = (
    "plain",
    "lookahead",
    "fused",
    "fused head",
    "head alone",
    "draft model",
    "block",
    "heuristic",
    "entropy",
    "ngram",
)


def method_of(kind: str, pkg: Any, model: Any, device: str = "cpu") -> Any:
    """A method of each kind, none of whose parts is trained."""
    sampling = pkg.SamplingConfig(temperature=0.9)
    vectors = pkg.LookAhead.random(2, model.hidden_size, 7)
    head = pkg.SamplerHead.random(model.hidden_size, 5, 7)
    if kind == "plain":
        return pkg.Autoregressive(model, sampling)
    if kind == "lookahead":
        return pkg.PaSS(model, vectors, sampling)
    if "fused" in kind or kind == "head alone":
        parts = {} if kind == "fused" else {"head": replace(head, uses_lookahead=kind != "head alone")}
        return pkg.FusedPaSS(model, replace(vectors, **parts), sampling)
    if kind == "ngram":
        return pkg.SpeculativeSampling(model, pkg.PromptLookup(model.vocab_size), sampling, num_draft=2)
    drafter = pkg.ModelDrafter(on_device(pkg, 5, device, model.vocab_size))
    settings = {"block": {"rule": "block"}, "heuristic": {"schedule": pkg.Heuristic(2)}}
    settings |= {"entropy": {"schedule": pkg.EntropyBound()}}
    return pkg.SpeculativeSampling(model, drafter, sampling, num_draft=2, **settings.get(kind, {}))


def on_device(pkg: Any, seed: int, device: str, vocab_size: int = TINY["vocab_size"]) -> Any:
    config = pkg.ModelConfig(**TINY | {"vocab_size": vocab_size})
    return pkg.Transformer(config, pkg.Weights.random(config, seed, device=device))


PROMPTS = [(1, 0), (2,), (0, 1, 2, 1), (1,), (2, 2, 0), (0, 0), (1, 2)]


def same_records(found: Any, alone: Any) -> None:
    """Tokens could be the same by chance, of three: so are all recorded probabilities, up to rounding."""
    assert found.tokens == alone.tokens and found.end == alone.end and found.sources == alone.sources
    assert found.num_positions == alone.num_positions and found.num_draft_tokens == alone.num_draft_tokens
    for mine, yours in zip(found.records, alone.records, strict=True):
        for name in ("log_probs", "draft_token_probs", "target_token_probs", "accept_probs"):
            assert getattr(mine, name) == pytest.approx(getattr(yours, name), abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("num_rows", [1, 3, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_a_request_has_the_text_that_it_has_alone(kind: str, num_rows: int) -> None:
    """In float64, record by record; more requests than rows, or fewer."""
    from pass_sampling.gpu.engine.engine import Engine, Request

    pkg = package("gpu")
    method = method_of(kind, pkg, transformer(pkg, 4))
    ending = pkg.Ending(9, (2,))
    engine = Engine(method, ending, num_rows, longest_prompt=4, seed=3)
    heard: dict[int, list[Any]] = {number: [] for number in range(len(PROMPTS))}
    requests = (Request(number, prompt) for number, prompt in enumerate(PROMPTS))
    found = dict(engine.run(requests, lambda number, record: heard[number].append(record)))
    assert sorted(found) == list(range(len(PROMPTS)))
    for number, prompt in enumerate(PROMPTS):
        alone = pkg.generate(method, prompt, 9, (2,), seed=3, request=number)
        assert found[number].tokens == alone.tokens and found[number].end == alone.end
        assert tuple(heard[number]) == found[number].records
        same_records(found[number], alone)


@pytest.mark.parametrize("kind", KINDS)
def test_a_traced_step_makes_the_same_text(kind: str) -> None:
    """The operations alone, without the Python around them: they ask the host nothing."""
    from pass_sampling.gpu.uniforms import uniform_stream
    from traced_step import inputs_of, trace_step

    pkg = package("gpu")
    method = method_of(kind, pkg, transformer(pkg, 4))
    alone = pkg.generate(method, (0, 1, 2, 1), 9, seed=3, eos_token_ids=(2,))
    uniforms = [uniform_stream(3, [0], step, method.num_uniforms) for step in range(9)]
    state, batch = method.step(method.start((0, 1, 2, 1), pkg.Ending(9, (2,))), uniforms[0])
    records, made = batch.rows(), trace_step(method, state, state.cache.capacity)
    while not state.ended.item():
        outputs = made.graph(*inputs_of(state, uniforms[len(records)]))
        state = made.layout.state(state, outputs)
        records += made.layout.record(outputs).rows()
    found = replace(alone, records=tuple(records), tokens=tuple(token for each in records for token in each.tokens))
    same_records(found, alone)


@pytest.mark.parametrize("kind", KINDS)
def test_fixed_shapes_make_the_same_texts(kind: str) -> None:
    """A step whose shapes depend on nothing in its tensors, as one that is captured."""
    from pass_sampling.gpu.engine.capture import Frozen, standing
    from pass_sampling.gpu.engine.rows import empty_rows, put_row
    from pass_sampling.gpu.uniforms import uniform_stream

    pkg = package("gpu")
    method, ending = method_of(kind, pkg, transformer(pkg, 4)), pkg.Ending(9, (2,))
    alone = [pkg.generate(method, prompt, 9, (2,), seed=3, request=number) for number, prompt in enumerate(PROMPTS)]
    state = empty_rows(method, ending, len(PROMPTS), 4)
    texts: list[tuple[int, ...]] = []
    for number, prompt in enumerate(PROMPTS):
        first, batch = method.step(method.start(prompt, ending), uniform_stream(3, [number], 0, method.num_uniforms))
        texts.append(batch.rows()[0].tokens)
        state = put_row(state, number, first)
    frozen = Frozen(method, standing(state), state.cache.capacity)
    places = {
        name: getattr(frozen.state, name).data_ptr() for name in ("tokens", "lengths", "lookahead_hidden", "pace")
    }
    for step in range(1, 10):
        record = frozen.step(uniform_stream(3, list(range(len(PROMPTS))), step, method.num_uniforms))
        texts = [text + row.tokens for text, row in zip(texts, record.rows(), strict=True)]
        assert places == {name: getattr(frozen.state, name).data_ptr() for name in places}
    assert texts == [text.tokens for text in alone]


@pytest.mark.parametrize("kind", ["plain", "lookahead", "fused head", "draft model"])
def test_a_step_in_fixed_shapes_keeps_a_row_that_was_not_finite(kind: str) -> None:
    """Here by what is left in the scratch of a cache, the drafter's too: the other row goes on, as if alone."""
    import torch

    from pass_sampling.gpu.engine.capture import Frozen, standing
    from pass_sampling.gpu.engine.rows import empty_rows, put_row
    from pass_sampling.gpu.state import PER_ROW
    from pass_sampling.gpu.uniforms import uniform_stream

    pkg = package("gpu")
    method, ending = method_of(kind, pkg, transformer(pkg, 4)), pkg.Ending(9)
    state = empty_rows(method, ending, 2, 4)
    for number in range(2):
        first, _ = method.step(
            method.start(PROMPTS[number], ending), uniform_stream(3, [number], 0, method.num_uniforms)
        )
        state = put_row(state, number, first)
    uniforms = uniform_stream(3, [0, 1], 1, method.num_uniforms)
    clean, after = state.copy(), Frozen(method, standing(state.copy()), state.cache.capacity)
    after.step(uniforms)
    for which in range(len(state.caches)):
        frozen = Frozen(method, standing(state.copy()), state.cache.capacity)
        frozen.state.caches[which].values[:, 0, :, -1] = float("nan")
        frozen.step(uniforms)
        for name in PER_ROW:
            found = getattr(frozen.state, name)
            assert torch.equal(found[0], getattr(clean, name)[0]) or (name == "fault" and found[0].isnan()), name
            assert torch.equal(found[1], getattr(after.state, name)[1]), name
        for cache, before, other in zip(frozen.state.caches, clean.caches, after.state.caches, strict=True):
            assert cache.lengths.tolist() == [int(before.lengths[0]), int(other.lengths[1])]


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


@pytest.mark.parametrize("kind", KINDS)
def test_the_distribution_of_a_step_in_fixed_shapes_is_the_targets(kind: str) -> None:
    pkg = package("gpu")
    method = method_of(kind, pkg, transformer(pkg, 4))
    distribution = output_distribution(FixedShapes(method), (1, 0), pkg.Ending(4, (2,)))
    sampling, ending = reference.SamplingConfig(temperature=0.9), reference.Ending(4, (2,))
    target = exact_target(transformer(reference, 4), sampling, (1, 0), ending)
    assert distribution.largest_deviation(target) <= 1e-12


def replayed(run: Any) -> tuple[Any, Any]:
    """What stands in for a graph on a CPU: done again as it was, its record in the same place."""
    record = run()

    def launch() -> None:
        again = run()
        for name, tensor in vars(record).items():
            if hasattr(tensor, "copy_"):
                tensor.copy_(getattr(again, name))

    return launch, record


def captured_engine(method: Any, ending: Any, make: Any, num_rows: int = 2, longest_prompt: int = 20) -> Any:
    """An engine that replays steps and reads them one step late, as on a GPU; sights begin at 4 slots."""
    from pass_sampling.gpu.engine.capture import Captured, standing
    from pass_sampling.gpu.engine.engine import Engine

    engine = Engine(method, ending, num_rows, longest_prompt, seed=3)
    engine._captured = Captured(method, standing(engine._state), make, least_kv_length=4)
    engine._state = engine._captured.state
    return engine


LONG = [(2,), (1, 0), (0, 1, 2, 1) * 5, (1,), (2, 0) * 6, (0, 0), (1, 2) * 9]


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_replayed_steps_see_as_much_as_the_longest_text_needs(kind: str, window: int | None) -> None:
    """Longer prompts come in while shorter texts are under way, and the host reads one step late."""
    pkg = package("gpu")
    method, ending = method_of(kind, pkg, transformer(pkg, 4, sliding_window=window)), pkg.Ending(9, (2,))
    engine = captured_engine(method, ending, replayed)
    requests = [pkg.Request(number, prompt) for number, prompt in enumerate(LONG)]
    found = dict(engine.run(requests))
    assert len(engine._captured.graphs) > 1 and len(found) == len(LONG)
    for number, prompt in enumerate(LONG):
        same_records(found[number], pkg.generate(method, prompt, 9, (2,), seed=3, request=number))


@pytest.mark.parametrize("late", [0, 2])
def test_where_capture_fails_the_step_runs_eagerly_from_where_it_was(
    late: int, caplog: pytest.LogCaptureFixture
) -> None:
    """At the first sight, or at a later one: with one warning, and the texts are those that they would have been."""
    pkg = package("gpu")
    made: list[int] = []

    def fails(run: Any) -> Any:
        made.append(1)
        if len(made) > late:
            run()
            raise RuntimeError("operation not permitted when stream is capturing\nmore of it")
        return replayed(run)

    method, ending = method_of("fused head", pkg, transformer(pkg, 4)), pkg.Ending(9, (2,))
    engine = captured_engine(method, ending, fails)
    with caplog.at_level(logging.WARNING):
        found = dict(engine.run(pkg.Request(number, prompt) for number, prompt in enumerate(LONG)))
    said = "the step runs eagerly, as it cannot be captured: operation not permitted when stream is capturing"
    assert [record.getMessage() for record in caplog.records] == [said]
    for number, prompt in enumerate(LONG):
        same_records(found[number], pkg.generate(method, prompt, 9, (2,), seed=3, request=number))


@pytest.mark.parametrize("captures", [False, True])
def test_whoever_leaves_early_finds_everything_when_coming_back(captures: bool) -> None:
    """Also where a callback raises: no record is lost, none is heard twice but the one that raised."""
    from pass_sampling.gpu.engine.engine import Engine

    pkg = package("gpu")
    method, ending = method_of("draft model", pkg, transformer(pkg, 4)), pkg.Ending(9, (2,))
    engine = captured_engine(method, ending, replayed, 3) if captures else Engine(method, ending, 3, 20, seed=3)
    requests = iter([pkg.Request(number, prompt) for number, prompt in enumerate(LONG)])
    found, calls = {}, iter(range(1000))

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
    for number, prompt in enumerate(LONG):
        same_records(found[number], pkg.generate(method, prompt, 9, (2,), seed=3, request=number))


def test_logits_that_are_not_finite_end_their_own_request_alone() -> None:
    from pass_sampling.gpu.engine.engine import Engine

    pkg = package("gpu")

    def breaks(prefix: tuple[int, ...], logits: Any) -> Any:
        return logits * float("nan") if prefix[:6] == (2, 0) * 3 and len(prefix) > 13 else logits

    method = replace(method_of("plain", pkg, transformer(pkg, 4)), processor=breaks)
    engine, found = Engine(method, pkg.Ending(9), 2, longest_prompt=20, seed=3), {}
    requests = iter([pkg.Request(number, prompt) for number, prompt in enumerate(LONG)])
    with pytest.raises(ValueError, match=r"^request 4: logits after position 13: the largest logit is nan"):
        found.update(engine.run(requests))
    for number, text in engine.run(requests):
        found[number] = text
    assert sorted(found) == [0, 1, 2, 3, 5, 6]
    for number, text in found.items():
        same_records(text, pkg.generate(method, LONG[number], 9, (), seed=3, request=number))


@pytest.mark.parametrize("kind", ["lookahead", "fused", "draft model"])
def test_a_freed_row_is_empty_and_one_that_is_taken_holds_its_text_alone(kind: str) -> None:
    """Whatever was in it, and in the scratch of the text that takes it; the other row is left alone."""
    import torch

    from pass_sampling.gpu.engine.rows import empty_rows, free_row, put_row
    from pass_sampling.gpu.state import PER_ROW
    from pass_sampling.gpu.uniforms import uniform_stream

    pkg = package("gpu")
    method, ending = method_of(kind, pkg, transformer(pkg, 4)), pkg.Ending(9)
    first, _ = method.step(method.start((0, 1, 2), ending), uniform_stream(3, [0], 0, method.num_uniforms))
    state = put_row(empty_rows(method, ending, 2, 6), 0, first)
    for place, value in enumerate((float("nan"), 1.5)):
        for name in ("tokens", "fault", "fault_position", "lookahead_hidden", "pace", "num_lookahead_hidden"):
            tensor = getattr(state, name)
            tensor[place] = value if tensor.is_floating_point() else place + 1
    for cache, other in zip(state.caches, first.caches, strict=True):
        for tensor in (cache.keys, cache.values):
            tensor[:, 0], tensor[:, 1] = float("nan"), 1.5
        for tensor in (other.keys, other.values):
            tensor[:, :, :, int(other.lengths) :] = float("nan")
    neighbour = state.select(torch.tensor([1]))

    state = free_row(state, 0)
    for name in PER_ROW:
        assert bool((getattr(state, name)[0] == (name in ("lengths", "prompt_lengths", "ended"))).all()), name
    for cache in state.caches:
        assert not cache.keys[:, 0].any() and not cache.values[:, 0].any() and not cache.lengths[0]

    for cache in state.caches:  # an empty row runs along, and leaves something after
        cache.keys[:, 0] = cache.values[:, 0] = float("nan")
    state = put_row(state, 0, first)
    for cache, other in zip(state.caches, first.caches, strict=True):
        length = int(other.lengths)
        for mine, yours in ((cache.keys, other.keys), (cache.values, other.values)):
            assert torch.equal(mine[:, 0, :, :length], yours[:, 0, :, :length]) and not mine[:, 0, :, length:].any()
    for cache, other in zip(state.caches, neighbour.caches, strict=True):
        assert torch.equal(cache.keys[:, 1:], other.keys) and torch.equal(cache.values[:, 1:], other.values)
    assert all(torch.equal(getattr(state, name)[1:], getattr(neighbour, name)) for name in PER_ROW)


@pytest.mark.parametrize("knows_tokens", [False, True])
def test_stop_strings_end_texts_of_the_engine_and_of_batches_as_elsewhere(knows_tokens: bool) -> None:
    """One may begin in the prompt of its row, if the decoder knows what each token adds."""
    from pass_sampling.gpu.engine.engine import Engine, Request
    from pass_sampling.reference.text.token_decoder import Piece, TokenDecoder

    pkg, stops = package("gpu"), ("é", "bb") if knows_tokens else ("bc", "aaa")
    method = method_of("draft model", pkg, transformer(pkg, 4))
    decode = lambda tokens: "".join("abc"[token] for token in tokens)  # noqa: E731
    if knows_tokens:
        decode = TokenDecoder([Piece(data=b"\xa9"), Piece("b"), Piece(data=b"\xc3")].__getitem__, in_runs=True)
    engine = Engine(method, pkg.Ending(12, (), stops, decode), 2, longest_prompt=4, seed=1)
    found = dict(engine.run(Request(number, prompt) for number, prompt in enumerate(PROMPTS)))
    batch = pkg.generate_batch(method, PROMPTS, 12, (), stops, decode, seed=1)
    for number, prompt in enumerate(PROMPTS):
        alone = pkg.generate(method, prompt, 12, (), stops, decode, seed=1, request=number)
        for text in (found[number], batch[number]):
            assert (text.tokens, text.text, text.end) == (alone.tokens, alone.text, alone.end)
        before = prompt if knows_tokens else ()
        wholes = [decode((*before, *alone.tokens[: count + 1])) for count in range(len(alone.tokens))]
        assert [any(stop in whole for stop in stops) for whole in wholes[:-1]] == [False] * (len(wholes) - 1)
        assert any(stop in wholes[-1] for stop in stops) == (alone.end == "stop_string")
    assert sum(text.end == "stop_string" for text in found.values()) > 1


def test_a_step_that_cannot_be_captured_runs_eagerly_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    from pass_sampling.gpu.engine.engine import Engine, Request

    pkg = package("gpu")
    method = method_of("fused head", pkg, transformer(pkg, 4))
    with caplog.at_level(logging.WARNING):
        engine = Engine(method, pkg.Ending(8), 2, longest_prompt=4, captures=True)
        found = dict(engine.run(Request(number, prompt) for number, prompt in enumerate(PROMPTS)))
    (warning,) = caplog.records
    assert warning.getMessage() == "the step runs eagerly, as it cannot be captured: it runs on cpu, not on a GPU"
    assert found[2].tokens == pkg.generate(method, PROMPTS[2], 8, request=2).tokens


def test_what_does_not_fit_is_refused() -> None:
    from pass_sampling.gpu.engine.engine import Engine, Request

    pkg = package("gpu")
    method = method_of("plain", pkg, transformer(pkg, 4))
    longest = method.model.max_position_embeddings
    with pytest.raises(ValueError, match=f"^max_new_tokens: found a prompt of {longest} tokens and 8 new ones"):
        Engine(method, pkg.Ending(8), 2, longest_prompt=longest)
    with pytest.raises(ValueError, match=r"^num_rows: found 0, expected an integer from 1 to 65536$"):
        Engine(method, pkg.Ending(8), 0)
    engine = Engine(method, pkg.Ending(8), 2, longest_prompt=3)
    with pytest.raises(ValueError, match=r"^prompt: found 4 tokens, expected at most 3, longest_prompt$"):
        list(engine.run([Request(0, (0, 1, 2, 1))]))


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_captured_steps_make_the_texts_of_eager_ones(kind: str) -> None:
    """On a GPU, in float64."""
    from pass_sampling.gpu.engine.engine import Engine, Request

    pkg = package("gpu")
    method, ending = method_of(kind, pkg, on_device(pkg, 4, "cuda"), "cuda"), pkg.Ending(9, (2,))
    engine = Engine(method, ending, 3, longest_prompt=4, seed=3)
    found = dict(engine.run(Request(number, prompt) for number, prompt in enumerate(PROMPTS)))
    assert engine._captured is not None, "the step was not captured"
    for number, prompt in enumerate(PROMPTS):
        assert found[number].tokens == pkg.generate(method, prompt, 9, (2,), seed=3, request=number).tokens
