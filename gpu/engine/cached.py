"""The engines that `generate` and `generate_batch` decode through on a GPU: made once for a method, used again.

An engine has rows for as many texts and as many tokens as a power of two. A method keeps its engines for as long as it
lives, and all graphs of a device share one pool of memory.
"""

from __future__ import annotations

from collections.abc import Sequence

from pass_sampling.reference.config import check_context, check_prompt
from pass_sampling.reference.ending import Ending
from pass_sampling.reference.record import Generation, NotFiniteError

from ..methods.base import Method
from ..model.transformer import Transformer
from .capture import why_not
from .engine import Engine
from .rows import Callback, Request

MOST_ROWS = 64  # more texts take turns
LEAST_LENGTH = 256  # tokens of a prompt, and new ones


def takes(method: Method, ending: Ending) -> bool:
    """Return whether an engine would capture a method's steps, so that it pays."""
    return isinstance(method.model, Transformer) and why_not(method, ending) is None


def close_engines(method: Method) -> None:
    """Give back the memory of all engines that a method keeps."""
    for engine in _engines_of(method).values():
        engine.close()
    _engines_of(method).clear()


def decode_through_engine(
    method: Method,
    prompts: Sequence[Sequence[int]],
    requests: Sequence[int],
    ending: Ending,
    seed: int,
    callback: Callback | None = None,
) -> tuple[list[Generation | None], dict[int, str]]:
    """Return the texts, and the faults of those that are None, by place; requests name the uniforms.

    Raises:
        ValueError: a prompt is empty, too long or holds no tokens; nothing is decoded then.
    """
    for prompt in prompts:
        room = method.model.max_position_embeddings
        check_context(len(check_prompt(prompt, method.model.vocab_size)), ending.max_new_tokens, room)
    texts: list[Generation | None] = [None] * len(prompts)
    faults: dict[int, str] = {}
    places = {request: place for place, request in enumerate(requests)}
    engine = _engine_for(method, ending, len(prompts), max(map(len, prompts)))
    asked = (Request(request, prompt, ending, seed) for request, prompt in zip(requests, prompts, strict=True))
    try:
        while None in [text for place, text in enumerate(texts) if place not in faults]:
            try:
                for number, text in engine.run(asked, callback):
                    texts[places[number]] = text
            except NotFiniteError as error:
                request, _, said = str(error).removeprefix("request ").partition(": ")
                faults[places[int(request)]] = said
    finally:
        engine.clear()
    return texts, faults


def _engines_of(method: Method) -> dict[tuple[object, ...], Engine]:
    engines: dict[tuple[object, ...], Engine] = vars(method).setdefault("_engines", {})
    return engines


def _engine_for(method: Method, ending: Ending, num_texts: int, longest_prompt: int) -> Engine:
    """Return an engine with enough rows and room, the one that is kept for their kind."""
    contexts = [method.model, getattr(method, "drafter", None)]
    room = min(each for model in contexts if (each := getattr(model, "max_position_embeddings", None)) is not None)
    rows = _power_of_two(min(num_texts, MOST_ROWS))
    new_tokens = min(_power_of_two(max(ending.max_new_tokens, LEAST_LENGTH)), room - 1)
    longest = min(_power_of_two(max(longest_prompt, LEAST_LENGTH)), room - new_tokens)
    if longest < longest_prompt:  # the context has no room for both powers
        longest, new_tokens = longest_prompt, room - longest_prompt
    key = (rows, longest, new_tokens, ending.eos_token_ids)
    engines = _engines_of(method)
    if key not in engines:
        engines[key] = Engine(method, Ending(new_tokens, ending.eos_token_ids), rows, longest)
    return engines[key]


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()
