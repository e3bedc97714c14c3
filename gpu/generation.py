"""The loop: repeat a method's step until every text has ended."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pass_sampling.reference.ending import Ending, ending_for
from pass_sampling.reference.record import Generation, NotFiniteError, Record
from pass_sampling.reference.text.decoder import Decode

from .batch_record import Packed
from .engine.engine import decode_through_engine, takes
from .engine.rows import Callback, generation_of
from .methods.base import Method
from .uniforms import STEPS_AHEAD, uniform_streams


def generate(
    method: Method,
    prompt: Sequence[int],
    max_new_tokens: int,
    eos_token_ids: Sequence[int] | None = None,
    stop_strings: Sequence[str] | None = None,
    decode: Decode | None = None,
    seed: int = 0,
    request: int = 0,
    trace: bool = False,
    callback: Callback | None = None,
) -> Generation:
    """Continue a prompt until it ends: exactly at a length, an end-of-sequence token or a stop string.

    Arguments and seeds: see `reference.generation.generate`.

    Raises:
        ValueError: an argument is out of range.
        NotFiniteError: the model's logits are not finite.
    """
    ending = ending_for(method.model, max_new_tokens, eos_token_ids, stop_strings, decode)
    (text,), faults = _generate(method, [prompt], [request], ending, seed, trace, callback)
    if text is None:
        raise NotFiniteError(faults[0])
    return text


def generate_batch(
    method: Method,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    eos_token_ids: Sequence[int] | None = None,
    stop_strings: Sequence[str] | None = None,
    decode: Decode | None = None,
    seed: int = 0,
    trace: bool = False,
    callback: Callback | None = None,
) -> list[Generation]:
    """Continue many prompts in one batch; prompt i is request i, see `generate`.

    A request fails if the model's logits are not finite. The others are completed before the error is raised.

    Raises:
        ValueError: an argument is out of range.
        NotFiniteError: requests failed. The message names them, and `generations` holds the texts of the others.
    """
    if len(prompts) == 0:
        return []
    ending = ending_for(method.model, max_new_tokens, eos_token_ids, stop_strings, decode)
    found, faults = _generate(method, prompts, list(range(len(prompts))), ending, seed, trace, callback)
    if faults:
        raise NotFiniteError("; ".join(f"request {i}: {faults[i]}" for i in sorted(faults)), found)
    return [each for each in found if each is not None]


@torch.inference_mode()
def _generate(
    method: Method,
    prompts: Sequence[Sequence[int]],
    requests: list[int],
    ending: Ending,
    seed: int,
    trace: bool,
    callback: Callback | None,
) -> tuple[list[Generation | None], dict[int, str]]:
    """Return the texts, and the error messages of those that are None: by an engine if it can capture the steps.

    Else all rows step together. Ended rows leave the batch once they are half of it, failed rows immediately.
    """
    if not trace and takes(method, ending):
        return decode_through_engine(method, prompts, requests, ending, seed, callback)
    state = method.start_batch(prompts, ending)
    records: list[list[Record]] = [[] for _ in prompts]
    unread: list[tuple[list[int], set[int], Packed]] = []
    rows = list(range(len(prompts)))  # the prompt of each row of the state
    going, faults, step, ahead = set(rows), dict[int, str](), 0, torch.empty(0)

    def read() -> None:  # without a callback only at the end, because Python is slow between passes
        for batch_rows, live, packed in unread:
            for row, record in zip(batch_rows, packed.rows(), strict=True):
                if row in live:
                    records[row].append(record)
                    if callback is not None:
                        callback(requests[row], record)
        unread.clear()

    while going:
        if not len(ahead):
            now = [requests[row] for row in rows]
            ahead = uniform_streams(seed, now, step, STEPS_AHEAD, method.num_uniforms, device=method.model.device)
        state, batch = method.step(state, ahead[0], trace)
        step, ahead = step + 1, ahead[1:]
        failed = {rows[place]: said for place, said in state.complaints().items()}
        faults, going = faults | failed, going - failed.keys()
        for cache in state.caches:
            cache.measure()  # the host waits for the newest tokens anyway
        unread.append((rows, going, batch.pack()))
        if callback is not None:
            read()
        going = {row for row, ended in zip(rows, state.ended.tolist(), strict=True) if not ended} - failed.keys()
        if going and (failed or len(going) <= len(rows) // 2):
            kept = [place for place, row in enumerate(rows) if row in going]
            places = torch.tensor(kept, device=method.model.device)
            state, ahead = state.select(places), ahead[:, places]
            rows = [rows[place] for place in kept]
    read()
    each = enumerate(prompts)
    return [None if row in faults else generation_of(prompt, records[row], ending) for row, prompt in each], faults
