"""The loop: repeat a method's step until the text ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from .ending import ending_for
from .methods.base import Method
from .record import Generation, NotFiniteError, Record
from .uniforms import uniform_stream

if TYPE_CHECKING:
    from .text.decoder import Decode

Callback = Callable[[int, Record], None]
"""Called as `callback(request, record)` after every step of a request: `record.tokens` are new in its text."""


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

    The same seed and request number give the same uniforms, and the same text if the model's logits are the same
    numbers. With drafts, another `max_new_tokens` may change the last steps, in which fewer drafts fit.

    Args:
        method: how to decode, over which model, with which sampling settings.
        prompt: token ids, at least one.
        max_new_tokens: tokens to generate at most.
        eos_token_ids: tokens that end the text; default: the model's own.
        stop_strings: strings that end the text once the decoded new tokens contain them; default: the model's own if
            `decode` is given, else none, with a warning in the log.
        decode: turns new tokens into text; needed for stop strings.
        seed: selects the stream of uniforms.
        request: number of this request; requests of one seed share no uniform.
        trace: keep in every record the distributions that the uniforms were compared with.
        callback: called with the record of every step, as soon as its tokens are committed.

    Raises:
        ValueError: an argument is out of range.
        NotFiniteError: the model's logits are not finite.
    """
    state = method.start(prompt, ending_for(method.model, max_new_tokens, eos_token_ids, stop_strings, decode))
    records: list[Record] = []
    while state.end is None:
        uniforms = uniform_stream(seed, request, len(records), method.num_uniforms)
        state, record = method.step(state, uniforms, trace)
        records.append(record)
        if callback is not None:
            callback(request, record)
    text = state.ending.text(state.new_tokens, prompt)
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
    """Continue many prompts; prompt i is request i, see `generate` for seeds and `max_new_tokens`.

    A request fails if the model's logits are not finite. The others are completed before the error is raised.

    Raises:
        ValueError: an argument is out of range.
        NotFiniteError: requests failed. The message names them, and `generations` holds the texts of the others.
    """
    settings = max_new_tokens, eos_token_ids, stop_strings, decode, seed
    found: list[Generation | None] = []
    faults: list[str] = []
    for i, prompt in enumerate(prompts):
        try:
            found.append(generate(method, prompt, *settings, i, trace, callback))
        except NotFiniteError as fault:
            found.append(None)
            faults.append(f"request {i}: {fault}")
    if faults:
        raise NotFiniteError("; ".join(faults), found)
    return [each for each in found if each is not None]
