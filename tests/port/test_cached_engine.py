"""The engines behind `generate` and `generate_batch`: the same texts as the eager loop's, here by steps run again."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

import pass_sampling.gpu as port
from pass_sampling.gpu import generation
from pass_sampling.gpu.engine import cached, capture
from pass_sampling.gpu.engine.cached import close_engines
from pass_sampling.reference.record import NotFiniteError
from test_engine import NAN, method_of, on_kinds, replayed, same_records

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


def test_random_requests_with_random_ends_and_failures(engines: None) -> None:
    """200 of them, through few engines, some of whose logits are not finite somewhere."""
    draw = np.random.default_rng(0)
    method = method_of("fused head", vocab_size=7)
    weights = method.model.weights
    for number in range(20):
        prompts = [draw.integers(0, 7, size=draw.integers(1, 6)).tolist() for _ in range(10)]
        length, eos = int(draw.integers(1, 14)), draw.integers(0, 7, size=draw.integers(0, 3)).tolist()
        broken = int(draw.integers(7)) if number % 2 else None
        before = weights.embedding.clone()
        if broken is not None:
            weights.embedding[broken] = NAN
        outcomes = []
        for run in (eagerly, lambda *arguments: port.generate_batch(*arguments[:4], (), seed=arguments[4])):
            try:
                outcomes.append((run(method, prompts, length, eos, number), ""))
            except NotFiniteError as error:
                outcomes.append((list(error.generations), str(error)))
        weights.embedding[:] = before
        assert outcomes[0][1] == outcomes[1][1]
        for mine, yours in zip(outcomes[0][0], outcomes[1][0], strict=True):
            assert (mine is None) == (yours is None)
            if mine is not None:
                assert (mine.tokens, mine.end) == (yours.tokens, yours.end)


def test_an_interrupted_text_leaves_its_engine_usable(engines: None) -> None:
    method = method_of("fused")
    expected = eagerly(method, PROMPTS, 9, (2,), 0)

    def stops(number: int, record: Any) -> None:
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            port.generate_batch(method, PROMPTS, 9, (2,), (), callback=stops)
        for mine, yours in zip(port.generate_batch(method, PROMPTS, 9, (2,), ()), expected, strict=True):
            same_records(mine, yours)


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
