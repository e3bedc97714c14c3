"""Watch a model write with PaSS, every token in the colour of how it came; then see what that cost.

Three ways take turns: plain decoding, PaSS as published, and PaSS in one call per step with what was trained for it.

  pass-sampling demo
  pass-sampling demo --temperature 0 --prompt 'class Stack:'
  pass-sampling demo --model FOLDER --lookahead VECTORS --device cuda

Without arguments it runs the bundled small model, which was trained on the Python standard library.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from typing import TYPE_CHECKING, Any

from .drafting import FLAGS, Unavailable
from .methods import method_called
from .options import (
    add_json,
    add_lookahead,
    add_machine,
    add_model,
    add_sampling,
    is_bundled,
    open_model,
    sampling_of,
)
from .text import check_unicode, decoder_of, encode_prompt, load_tokenizer

if TYPE_CHECKING:
    from pass_sampling.reference.config import SamplingConfig
    from pass_sampling.reference.record import Generation

    from ..methods import Method
    from ..model.transformer import Transformer

HELP = "watch the bundled model write Python, drafted and verified by itself"
# None ends with a line break: the next line's indentation is part of that token.
PROMPTS = (
    'def read_lines(path):\n    """Return the lines of a text file, without their ends."""',
    'class Queue:\n    """First in, first out."""\n\n    def __init__(self, maxsize=0):',
    "import os\nimport sys\n\ndef main():\n    if len(sys.argv) < 2:",
)
PLAIN = "plain decoding"
WAYS = {"PaSS": "pass", "PaSS, one call": "pass-one-call"}  # as published, and ours


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    add_model(parser)
    add_lookahead(parser)
    parser.add_argument(
        "--prompt",
        action="append",
        metavar="TEXT",
        help="a text to continue; may be repeated; default: three beginnings",
    )
    parser.add_argument(
        "--max-new-tokens", type=int, default=100, metavar="N", help="length of each text; default: %(default)s"
    )
    parser.add_argument(
        "--repeats", type=int, default=5, metavar="N", help="paired runs after each figure; default: %(default)s"
    )
    add_sampling(parser)
    add_machine(parser)
    add_json(parser)
    parser.set_defaults(**dict.fromkeys((*FLAGS[1:],)))  # as many drafts as there are vectors, token by token


def run(arguments: argparse.Namespace) -> None:
    """Show the texts, then the figures."""
    from pass_sampling.reference.config import check_context, check_integer, check_prompt

    check_integer("repeats", arguments.repeats, 1, 10**6)
    check_integer("max_new_tokens", arguments.max_new_tokens, 1, 2**30)
    texts = [check_unicode("--prompt", text) for text in arguments.prompt or PROMPTS]
    sampling = sampling_of(arguments)
    model = open_model(arguments)
    methods = _methods(arguments, model, sampling)
    tokenizer = load_tokenizer(arguments.model)
    prompts = [encode_prompt(tokenizer, text) for text in texts]
    for prompt in prompts:  # before anything is shown
        check_prompt(prompt, model.vocab_size)
        check_context(len(prompt), arguments.max_new_tokens, model.max_position_embeddings)
    if not arguments.json:
        _show(list(methods.values())[-1], texts, prompts, tokenizer, arguments)
    rows = _measure(methods, prompts, arguments)
    machine = _machine(model, arguments)
    if arguments.json:
        print(json.dumps({"rows": rows, **machine}, indent=2, allow_nan=False))
        return
    _print_table(rows, machine)


def _methods(arguments: argparse.Namespace, model: Transformer, sampling: SamplingConfig) -> dict[str, Method]:
    """Return plain decoding and what the vectors can be used with: those with an adapter or a head in one call alone.

    Raises:
        Unavailable: there are no vectors.
    """
    methods = {PLAIN: method_called("autoregressive", arguments, model, sampling)}
    for shown, name in WAYS.items():
        try:
            methods[shown] = method_called(name, arguments, model, sampling)
        except Unavailable:
            if name != "pass" or (arguments.lookahead is None and not is_bundled(arguments.model)):
                raise
    return methods


def _show(
    method: Method, texts: list[str], prompts: list[list[int]], tokenizer: Any, arguments: argparse.Namespace
) -> None:
    """Write the texts with PaSS, in colour."""
    from pass_sampling.reference.ending import Ending

    from ..generation import generate
    from .streaming import DIM, RESET, SourceStream, is_colourful, legend

    colourful, decode = is_colourful(sys.stdout), decoder_of(tokenizer)
    print(f"{method.model.name} writes with PaSS. {legend(colourful)}.")
    for number, (text, prompt) in enumerate(zip(texts, prompts, strict=True)):
        print(f"\n----- {number + 1} -----")
        sys.stdout.write(f"{DIM}{text}{RESET}" if colourful else text)
        model = method.model
        ending = Ending(arguments.max_new_tokens, model.eos_token_ids, model.stop_strings, decode)
        with SourceStream(ending, prompt=prompt) as shown:
            result = generate(
                method,
                prompt,
                arguments.max_new_tokens,
                decode=decode,
                seed=arguments.seed,
                request=number,
                callback=shown.record,
            )
            shown.finish(result.text or "")
    print()


def _measure(methods: dict[str, Method], prompts: list[list[int]], arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the methods in turn, several times; return the figures of the turn with the last one's median ratio.

    All figures are those of one turn, so that they agree with one another.
    """
    results: dict[str, list[Generation]] = {}
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for repeat in range(arguments.repeats + 1):
        for name, method in methods.items():
            started = time.perf_counter()
            results[name] = [_one(method, prompt, number, arguments) for number, prompt in enumerate(prompts)]
            if repeat > 0:  # the first run warms up
                seconds[name].append(time.perf_counter() - started)
    tokens = {name: sum(len(result.tokens) for result in results[name]) for name in methods}
    ratios = [plain / mine for mine, plain in zip(seconds[list(methods)[-1]], seconds[PLAIN], strict=True)]
    median = ratios.index(statistics.median_low(ratios))
    rows = {}
    for name in methods:
        passes = sum(result.num_forward_passes for result in results[name])
        rate = tokens[name] / seconds[name][median]
        rows[name] = {
            "tokens": tokens[name],
            "num_forward_passes": passes,
            "tokens_per_forward": tokens[name] / passes,
            "positions_per_forward": sum(result.num_positions for result in results[name]) / passes,
            "seconds": seconds[name][median],
            "tokens_per_second": rate,
            "milliseconds_per_pass": 1000 * seconds[name][median] / passes,
            "ratio_to_plain": rate / (tokens[PLAIN] / seconds[PLAIN][median]),
        }
    return rows


def _one(method: Method, prompt: list[int], number: int, arguments: argparse.Namespace) -> Generation:
    from ..generation import generate

    return generate(method, prompt, arguments.max_new_tokens, stop_strings=(), seed=arguments.seed, request=number)


def _machine(model: Transformer, arguments: argparse.Namespace) -> dict[str, Any]:
    import torch

    return {
        "model": model.name,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "threads": torch.get_num_threads(),
        "temperature": arguments.temperature,
        "top_k": arguments.top_k,
        "top_p": arguments.top_p,
        "max_new_tokens": arguments.max_new_tokens,
        "repeats": arguments.repeats,
        "seed": arguments.seed,
    }


def _print_table(rows: dict[str, Any], machine: dict[str, Any]) -> None:
    """Print the figures, and in a sentence for each way of drafting what they mean here."""
    distribution = f"temperature {machine['temperature']:g}, top-k {machine['top_k']}, top-p {machine['top_p']:g}"
    print(
        f"The same distribution, {distribution}, in {len(rows)} ways (texts differ, and may end early): "
        f"{machine['dtype']} on {machine['device']}, {machine['threads']} threads, the median of {machine['repeats']} "
        "paired runs."
    )
    print(
        f"{'':16}{'tokens':>8}{'passes':>8}{'tokens per pass':>17}{'ms per pass':>13}{'seconds':>9}{'tokens per s':>14}"
        f"{'ratio':>7}"
    )
    for name, row in rows.items():
        print(
            f"{name:16}{row['tokens']:8}{row['num_forward_passes']:8}{row['tokens_per_forward']:17.2f}"
            f"{row['milliseconds_per_pass']:13.2f}{row['seconds']:9.2f}{row['tokens_per_second']:14.0f}"
            f"{row['ratio_to_plain']:7.2f}"
        )
    for name, row in list(rows.items())[1:]:
        fewer = row["tokens_per_forward"] / rows[PLAIN]["tokens_per_forward"]
        dearer = row["milliseconds_per_pass"] / rows[PLAIN]["milliseconds_per_pass"]
        speed = row["ratio_to_plain"]
        verification = "faster than" if speed > 1.02 else "slower than" if speed < 0.98 else "as fast as"
        print(
            f"{name} gets {fewer:.2f} times the tokens out of a pass, which takes {dearer:.2f} times as long: on this "
            f"machine {speed:.2f} times the speed, {verification} plain decoding."
        )
