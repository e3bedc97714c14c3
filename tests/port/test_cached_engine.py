"""The engines behind `generate` and `generate_batch`: the eager loop's texts; a captured step asks the host nothing."""

import gc
import weakref
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import pass_sampling.gpu as port
from on_meta import asking_nothing, on_meta, round_trips
from pass_sampling.gpu import generation
from pass_sampling.gpu.engine import capture
from pass_sampling.gpu.engine import engine as cached
from pass_sampling.gpu.engine.capture import Frozen, standing
from pass_sampling.gpu.engine.engine import close_engines
from pass_sampling.gpu.engine.rows import empty_rows
from pass_sampling.gpu.sampling import _sum_in_parts
from pass_sampling.reference.record import NotFiniteError
from test_engine import KINDS, filled, method_of, on_kinds, replayed, same_records, uniforms

PROMPTS = [(1, 0), (2,), (0, 1, 2, 1), (1,), (2, 2, 0)]


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Decode through engines on a CPU, which run captured steps again in place of graphs."""
    why_not = capture.why_not

    def but_for_the_device(method: Any, ending: Any, state: Any = None) -> str | None:
        found = why_not(method, ending, state)
        return None if found is not None and found.startswith("it runs on cpu") else found

    monkeypatch.setattr(capture, "why_not", but_for_the_device)
    monkeypatch.setattr(cached, "why_not", but_for_the_device)
    monkeypatch.setattr(capture, "Captured", partial(capture.Captured, make=replayed))
    monkeypatch.setattr(cached, "LEAST_LENGTH", 8)
    made = cached.Engine

    def capturing(*arguments: Any) -> Any:
        return made(*arguments, captures=True)

    monkeypatch.setattr(cached, "Engine", capturing)
    yield


def eagerly(method: Any, prompts: Any, length: int, eos: Any, seed: int) -> list[Any]:
    """The texts of the loop that no engine is behind."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generation, "takes", lambda method, ending: False)
        return port.generate_batch(method, prompts, length, eos, (), seed=seed)


@on_kinds
def test_texts_and_records_are_those_of_the_eager_loop(kind: str, engines: None) -> None:
    method = method_of(kind)
    for length, eos, seed in ((9, (2,), 0), (20, (), 1), (9, (2,), 2)):
        expected = eagerly(method, PROMPTS, length, eos, seed)
        heard: list[list[Any]] = [[] for _ in PROMPTS]
        hear = lambda number, record, heard=heard: heard[number].append(record)  # noqa: E731
        found = port.generate_batch(method, PROMPTS, length, eos, (), seed=seed, callback=hear)
        for mine, yours, records in zip(found, expected, heard, strict=True):
            same_records(mine, yours)
            assert list(mine.records) == records
        alone = port.generate(method, PROMPTS[2], length, eos, (), seed=seed, request=2)
        same_records(alone, expected[2])
    engines_made = vars(method)["_engines"].values()
    assert 1 < len(engines_made) <= 6 and all(engine._captured is not None for engine in engines_made)


def test_a_request_at_fault_is_named_as_by_the_eager_loop(engines: None) -> None:
    method, outcomes = method_of("fused head", vocab_size=7), []
    method.model.weights.embedding[3] = float("nan")
    for run in (eagerly, lambda *given: port.generate_batch(*given[:4], (), seed=given[4])):
        with pytest.raises(NotFiniteError) as error:
            run(method, [(1,), (3, 1), (2, 5), (0, 6)], 9, (2,), 0)
        outcomes.append((str(error.value), [text and (text.tokens, text.end) for text in error.value.generations]))
    assert outcomes[0] == outcomes[1]


def test_an_engine_of_ones_own_is_cleared_after_a_run_that_was_left() -> None:
    method = method_of("fused")
    engine = port.Engine(method, port.Ending(9), 2, 4, seed=0)
    requests = [port.Request(number, prompt) for number, prompt in enumerate(PROMPTS)]
    next(engine.run(requests))
    engine.clear()
    for number, text in engine.run(requests[:1]):
        same_records(text, port.generate(method, PROMPTS[number], 9, (), ()))


def test_engines_die_with_their_method_or_when_they_are_closed(engines: None) -> None:
    method = method_of("fused")
    port.generate_batch(method, PROMPTS, 9, (2,), ())
    (engine,) = vars(method)["_engines"].values()
    close_engines(method)
    engine.close()  # once more changes nothing
    assert not vars(method)["_engines"]
    with pytest.raises(ValueError, match=r"^the engine is closed, expected a new one$"):
        list(engine.run([port.Request(0, (1,))]))
    port.generate_batch(method, PROMPTS, 9, (2,), ())
    (engine,) = vars(method)["_engines"].values()
    seen = weakref.ref(engine)
    del method, engine
    gc.collect()
    assert seen() is None


def test_what_no_engine_can_capture_is_decoded_as_before(engines: None) -> None:
    """Processors, stop strings, traces; and prompts that cannot be decoded change nothing."""
    method = replace(method_of("fused"), processor=lambda prefix, logits: logits)
    port.generate(method, (1, 0), 9, (), ())
    assert "_engines" not in vars(method)
    method = method_of("fused")
    port.generate(method, (1, 0), 9, (), ["ab"], lambda tokens: "".join("abc"[token] for token in tokens))
    port.generate(method, (1, 0), 9, (), (), trace=True)
    assert "_engines" not in vars(method)
    for prompt in ((), (77,), (0,) * 10_000):
        with pytest.raises(ValueError, match="prompt"):
            port.generate_batch(method, [(1,), prompt], 9, (), ())
    assert "_engines" not in vars(method)


def frozen_step(method: Any, num_rows: int = 3, fixed: bool = True) -> Any:
    """Return a step after the first one as it is captured, on tensors of shapes alone, and the place of its passes."""
    state = empty_rows(method, port.Ending(40, (2,)), num_rows, 4)
    frozen = Frozen(method, standing(state), state.cache.capacity)
    uniforms = torch.zeros((num_rows, method.num_uniforms), dtype=torch.float64)
    with torch.inference_mode():
        frozen.step(uniforms)  # makes what is made once
        frozen, uniforms = on_meta((frozen, uniforms))
        if not fixed:
            for cache in frozen.state.caches:
                cache.kv_length = None
            return lambda: frozen.method.step(frozen.state, uniforms)
        frozen.step(uniforms)
    return lambda: frozen.step(uniforms)


@pytest.mark.parametrize("window", [None, 3])
@on_kinds
def test_a_captured_step_asks_the_host_nothing_and_mixes_no_devices(kind: str, window: int | None) -> None:
    asking_nothing(frozen_step(method_of(kind, sliding_window=window)))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "plain"])
def test_a_step_in_free_shapes_asks(kind: str) -> None:
    """So the check bites."""
    step = frozen_step(method_of(kind), fixed=False)
    with pytest.raises((AssertionError, RuntimeError, NotImplementedError)):
        asking_nothing(step)


MOST_ROUND_TRIPS = {
    **{"plain": 1, "ngram": 2, "lookup, n-grams": 2, "paths": 2, "fused": 3, "fused head": 3, "head alone": 3},
    **{"blocks": 3, "rescored blocks": 3, "heuristic": 3, "draft model": 4, "block": 4, "k-seq": 4},
    **{"one-call tree": 4, "head tree": 4, "lookahead": 5, "tree": 7, "entropy": 8},
}
"""How often an eager step waits for the device; `-rP` prints for what."""


@on_kinds
def test_an_eager_step_seldom_waits_for_the_device(kind: str) -> None:
    method = method_of(kind)
    state, _ = filled(method, PROMPTS[:3])
    round_trips(lambda: method.step(state.copy(), uniforms(method, [0, 1, 2], 1)))  # makes what is made once
    found = round_trips(lambda: method.step(state, uniforms(method, [0, 1, 2], 1)))
    print(f"{kind}: {sum(found.values())}, {dict(found)}")
    assert sum(found.values()) <= MOST_ROUND_TRIPS[kind]


LIMITS = {"plain": 60, "fused": 177, "lookahead": 216, "draft model": 299, "blocks": 184}
"""Operations of a step in float64 outside its layers, at most, whatever the number of vectors; `-rP` prints them."""


@pytest.mark.parametrize("kind", LIMITS)
def test_a_step_has_few_operations_outside_its_layers(kind: str) -> None:
    """Each is a launch on a GPU, where a plain step of a model of 1B parameters takes 0.6 ms at best."""
    one, two = (
        sum(asking_nothing(frozen_step(method_of(kind, num_hidden_layers=number), 1)).values()) for number in (1, 2)
    )
    print(f"{kind}: {2 * one - two} operations outside the layers, {two - one} in each")
    assert 2 * one - two <= LIMITS[kind]


@given(
    size=st.sampled_from([1, 2, 511, 512, 513, 1024, 5000, 49_152]),
    seed=st.integers(0, 99),
    zeros=st.sampled_from([0.0, 0.5, 0.999]),
)
def test_sums_in_parts_are_those_in_a_row_but_for_rounding_and_never_decrease(size, seed, zeros):
    draw = torch.Generator().manual_seed(seed)
    weights = torch.rand((2, size), generator=draw, dtype=torch.float64) ** 8 + 1e-300
    weights = weights.masked_fill(torch.rand((2, size), generator=draw) < zeros, 0.0)
    weights[:, seed % size] = 1.0
    probs = weights / weights.sum(dim=1, keepdim=True)
    sums = _sum_in_parts(probs)
    assert sums.shape == probs.shape and bool((sums.diff(dim=1) >= 0).all())
    assert bool(((sums - probs.cumsum(dim=1)).abs() <= 2 * size * 2.0**-53).all())
