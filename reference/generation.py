"""The loop: repeat a method's step until the text ends."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from .ending import Decode, Ending
from .methods.base import Method
from .record import Generation, Record
from .tape import tape

Callback = Callable[[int, Record], None]
"""Called as `callback(request, record)` after every cycle of a request: `record.tokens` are new in its text."""


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

    The same seed and request number give the same uniforms, whatever else is generated beside it, and so the same
    text as far as the model's logits are the same numbers. Where drafts are verified, another `max_new_tokens` may
    change the text from the last steps of the shorter one on: fewer drafts fit before its end.

    Args:
        method: how to decode, over which model, with which sampling settings.
        prompt: token ids, at least one.
        max_new_tokens: tokens to generate at most.
        eos_token_ids: tokens that end the text; default: the model's own.
        stop_strings: strings that end the text once they stand in the decoded new tokens; default: the model's own
            where there is `decode`, else none, and the log says so.
        decode: turns new tokens into text; needed for stop strings.
        seed: picks the tape of uniforms.
        request: number of this request; requests of one seed share no uniform.
        trace: keep in every record the laws that the uniforms were compared with.
        callback: called with the record of every cycle, as soon as its tokens are committed.

    Raises:
        ValueError: an argument is out of range, or the model's logits are not finite.
    """
    state = method.start(prompt, _ending(method, max_new_tokens, eos_token_ids, stop_strings, decode))
    records: list[Record] = []
    while state.end is None:
        uniforms = tape(seed, request, len(records), method.num_slots)
        state, record = method.step(state, uniforms, trace)
        records.append(record)
        if callback is not None:
            callback(request, record)
    text = state.ending.text(state.new_tokens)
    return Generation(tuple(map(int, prompt)), state.new_tokens, state.end, tuple(records), text)


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
    """Continue many prompts; prompt i is request i. Seeds and `max_new_tokens` work as in `generate`."""
    return [
        generate(method, prompt, max_new_tokens, eos_token_ids, stop_strings, decode, seed, i, trace, callback)
        for i, prompt in enumerate(prompts)
    ]


def _ending(
    method: Method,
    max_new_tokens: int,
    eos_token_ids: Sequence[int] | None,
    stop_strings: Sequence[str] | None,
    decode: Decode | None,
) -> Ending:
    """Return the ends of a text: those that were asked for, or else the model's own."""
    eos = method.model.eos_token_ids if eos_token_ids is None else eos_token_ids
    stops = method.model.stop_strings if stop_strings is None else stop_strings
    if stop_strings is None and stops and decode is None:
        logging.getLogger(__name__).warning(
            "stop_strings: found %r in the model's generation settings and no decode function, expected one: no text "
            "ends there",
            stops,
        )
        stops = ()
    return Ending(max_new_tokens, eos, stops, decode)
