"""The page that `generate --trace` writes: how a text was decoded, with plain decoding of the same prompt beside it."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from pass_sampling.reference.checkpoint.folder import replace_file
from pass_sampling.reference.ending import Ending
from pass_sampling.reference.record import Generation
from pass_sampling.reference.text.trace import Traced, trace_page

from ..generation import generate
from ..methods import Autoregressive, Method
from ..sampling import probs_from_logits


def write_trace(path: Path, method: Method, name: str, result: Generation, ending: Ending, seed: int) -> None:
    """Write the page of a traced generation, request 0 of its seed; a file that exists is replaced as a whole."""
    decodings = [Traced(name, method, result, seed, target_probs=target_probs(method, result))]
    if not isinstance(method, Autoregressive):
        plain, stops = Autoregressive(method.model, method.sampling), ending.stop_strings
        length, decode, eos = ending.max_new_tokens, ending.decode, ending.eos_token_ids
        beside = generate(plain, result.prompt, length, eos, stops, decode, seed, trace=True)
        decodings.append(Traced("plain decoding", plain, beside, seed))
    replace_file(path, trace_page(decodings, ending.decode))
    print(f"wrote {path}", file=sys.stderr)


@torch.inference_mode()
def target_probs(method: Method, result: Generation) -> npt.NDArray[np.float64]:  # [N, V] for N new tokens
    """Return the target's distributions after the prompt and after each new token but the last, by one pass."""
    model, tokens = method.model, [*result.prompt, *result.tokens[:-1]]
    inputs = model.embed(torch.tensor([tokens], device=model.device))
    hidden = model.hidden(inputs, model.new_cache(len(tokens)))[0, len(result.prompt) - 1 :]
    found: npt.NDArray[np.float64] = probs_from_logits(model.logits(hidden), method.sampling).cpu().numpy()
    return found
