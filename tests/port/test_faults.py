"""Steps that fail, and thousands of requests: no request is lost, nothing leaks, and every text is right."""

import gc
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pass_sampling.gpu as port
from pass_sampling.gpu.engine.engine import Engine, Request
from test_engine import ENDING, LONG, alone, method_of, requests_of, same_records

NUM_CASES, LONGEST = 60, 12
ENDS = {"stop_strings": ("a", "eb"), "decode": lambda tokens: "".join("abcde"[token] for token in tokens)}


def memory() -> tuple[int, int]:
    """Return the number of blocks that Python has allocated, and the resident bytes where the system tells them."""
    gc.collect()
    statm = Path("/proc/self/statm")
    return sys.getallocatedblocks(), int(statm.read_text().split()[1]) * os.sysconf(
        "SC_PAGE_SIZE"
    ) if statm.exists() else 1


@pytest.mark.parametrize("num_requests", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_no_request_is_lost_and_memory_is_flat(num_requests: int) -> None:
    """Requests repeat a few cases in any order; some end in a fault, some are refused, and callbacks raise."""
    method = method_of("fused head", vocab_size=5)
    method.model.weights.embedding[2] = float("nan")  # a text that draws this token fails
    draw = np.random.default_rng(0)
    prompts = [draw.choice([0, 1, 3, 4], draw.integers(1, LONGEST + 1)).tolist() for _ in range(NUM_CASES)]
    limits = draw.integers(1, 14, NUM_CASES).tolist()
    expected: list[Any] = []
    for case, (prompt, limit) in enumerate(zip(prompts, limits, strict=True)):
        try:
            text = port.generate(
                method, prompt, limit, (3,), ENDS["stop_strings"], ENDS["decode"], seed=3, request=case
            )
            expected.append((text.tokens, text.end, text.text))
        except port.NotFiniteError as fault:
            expected.append(f"request {case}: {fault}")
    ends = Counter(each if isinstance(each, str) else each[1] for each in expected)
    assert {"eos", "length", "stop_string"} < set(ends) and len(ends) > 3

    cases = draw.integers(-1, NUM_CASES, num_requests).tolist()  # -1: a prompt that is too long
    ending = port.Ending(13, (3,), **ENDS)
    requests = (  # not a list, whose memory would be freed at the end
        Request(case, [0] * (LONGEST + 1) if case < 0 else prompts[case], port.Ending(limits[case], (3,), **ENDS))
        for case in cases
    )
    engine = Engine(method, ending, 5, LONGEST, seed=3)
    found: Counter[int] = Counter()
    used: list[tuple[int, int]] = []

    def sometimes_raises(case: int, record: Any) -> None:
        if draw.random() < 0.01:
            raise KeyError(case)

    while True:
        try:
            for case, text in engine.run(requests, sometimes_raises):
                assert (text.tokens, text.end, text.text) == expected[case]
                found[case] += 1
                if found.total() % (num_requests // 10) == 0:
                    used.append(memory())
            break
        except port.NotFiniteError as fault:
            case = int(str(fault).split()[1].removesuffix(":"))
            assert str(fault) == expected[case]
            found[case] += 1
        except ValueError as refused:
            assert str(refused) == "prompt: found 13 tokens, expected at most 12, longest_prompt"
            found[-1] += 1
        except KeyError:
            continue
    assert found == Counter(cases)
    for one in zip(*used[2:], strict=True):
        assert max(one) <= 1.02 * min(one), used


@pytest.mark.parametrize("admitted", [True, False])
@pytest.mark.parametrize("kind", ["plain", "lookahead", "fused head", "draft model", "tree"])
def test_an_engine_repeats_a_step_that_raised(kind: str, admitted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """After any pass, of a step of all rows or of a first one: the next run continues, and every text is right."""
    method, left, num_raised = method_of(kind), [0], 0
    hidden, expected = method.model.hidden, alone(method, LONG[:3])

    def raises(*arguments: Any, **options: Any) -> Any:
        left[0] -= 1
        found = hidden(*arguments, **options)
        if left[0] == 0:
            raise MemoryError
        return found

    monkeypatch.setattr(method.model, "hidden", raises)
    for number in range(1, 5):
        engine, found, requests = Engine(method, ENDING, 3, 20, seed=3), {}, requests_of(LONG[:3])
        for place in range(3 * admitted):
            engine._admit(place, next(requests))
        left[0] = number
        try:
            for request, text in engine.run(requests):
                found[request] = text
        except MemoryError:
            num_raised += 1
        found |= dict(engine.run(requests))
        for request, text in enumerate(expected):
            same_records(found[request], text)
    assert num_raised > 1
