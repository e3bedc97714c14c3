"""Watch a model write with PaSS, every token in the colour of how it came; then see what that cost.

Plain decoding, PaSS as published, PaSS in one call per step, and the way that the plan chose take turns.

  pass-sampling demo
  pass-sampling demo --temperature 0 --prompt 'class Stack:'
  pass-sampling demo --model FOLDER --lookahead VECTORS --device cuda

Without options it runs the bundled small model, which was trained on the Python standard library.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoints import PROMPTS
from ..decode_options import DecodeOptions, Unavailable, is_bundled, option
from .console import DIM, RESET, SourceStream, check_unicode, encode_prompt, is_colourful, legend
from .options import ModelOptions, SamplingOptions, group, json_option
from .plan import find_plan

if TYPE_CHECKING:
    from pass_sampling.reference.record import Generation

    from ..methods import Method
    from ..model.transformer import Transformer

HELP = "watch the bundled model write Python, drafted and verified by itself"
PLAIN = "plain decoding"
REAL, QUESTION = "smollm2-135m", "Explain in three sentences why the sky is blue."
DRAFTING = {"PaSS": "pass", "PaSS, one call": "pass-one-call"}  # as published, and ours


@dataclass(frozen=True)
class Options:
    """Options of `pass-sampling demo`."""

    target: ModelOptions = ModelOptions()
    decode: DecodeOptions = group(DecodeOptions(), ["lookahead"])
    prompt: tuple[str, ...] = option(
        (), "a text to continue; may be repeated; default: three beginnings", action="append", metavar="TEXT"
    )
    max_new_tokens: int = option(100, "length of each text")
    repeats: int = option(5, "paired runs behind each figure")
    sampling: SamplingOptions = SamplingOptions()
    json: bool = json_option()

    def __post_init__(self) -> None:
        """Check numbers and texts, before anything is loaded."""
        from pass_sampling.reference.config import check_integer

        check_integer("repeats", self.repeats, 1, 10**6)
        check_integer("max_new_tokens", self.max_new_tokens, 1, 2**30)
        for text in self.prompt:
            check_unicode("--prompt", text)


def run(options: Options) -> None:
    """Show the texts, then the figures."""
    from pass_sampling.reference.config import check_context, check_prompt

    from ..make_method import make_method
    from ..training.tokens import load_tokenizer

    target, texts = options.target.fetched(), options.prompt or PROMPTS
    model = target.load()
    methods = _methods(options, model, target.model)
    drafted = list(methods.values())[-1]
    tokenizer = load_tokenizer(target.model)
    prompts = [encode_prompt(tokenizer, text) for text in texts]
    for prompt in prompts:  # before anything is shown
        check_prompt(prompt, model.vocab_size)
        check_context(len(prompt), options.max_new_tokens, model.max_position_embeddings)
    if not options.json:
        _show(drafted, texts, prompts, tokenizer, options)
    plan = find_plan(target, model, options.sampling, options.decode.fetched(), quiet=options.json)
    assert plan is not None
    methods[f"plan: {plan.options.method}"] = make_method(plan.options, model, options.sampling.config, target.model)
    rows = _measure(methods, prompts, options)
    machine = _machine(model, options)
    if options.json:
        print(json.dumps({"rows": rows, **machine}, indent=2, allow_nan=False))
        return
    _print_table(rows, machine)
    if is_bundled(target.model):
        _real_model()


def _real_model() -> None:
    """Let a real model answer, if it has been fetched; else say how to see it."""
    from ..checkpoint.gguf import fetched_folder
    from . import generate

    if not fetched_folder(REAL).is_dir():
        print("\nA real model, SmolLM2-135M-Instruct: make demo-chat, or pass-sampling fetch smollm2-135m")
        return
    print(f"\n----- {REAL}: {QUESTION} -----", flush=True)
    generate.run(generate.Options(ModelOptions(Path(REAL)), prompt=QUESTION, chat=True, max_new_tokens=100))


def _methods(options: Options, model: Transformer, folder: Path) -> dict[str, Method]:
    """Return plain decoding and the uses of the vectors: those with an adapter or a head serve one call alone.

    Raises:
        Unavailable: there are no vectors.
    """
    from ..make_method import make_method

    given, sampling = options.decode.fetched().lookahead, options.sampling.config
    methods = {PLAIN: make_method(DecodeOptions("autoregressive"), model, sampling, folder)}
    for name, method in DRAFTING.items():
        try:
            methods[name] = make_method(DecodeOptions(method, given), model, sampling, folder)
        except Unavailable:
            if method != "pass" or (given is None and not is_bundled(folder)):
                raise
    return methods


def _show(
    method: Method, texts: Sequence[str], prompts: Sequence[Sequence[int]], tokenizer: Any, options: Options
) -> None:
    """Write the texts with PaSS, in colour."""
    from pass_sampling.reference.ending import Ending

    from ..generation import generate
    from ..hf.text_decoder import decoder_of

    colourful, decode, model = is_colourful(sys.stdout), decoder_of(tokenizer), method.model
    print(f"{model.name} writes with PaSS. {legend(colourful)}.")
    for number, (text, prompt) in enumerate(zip(texts, prompts, strict=True)):
        print(f"\n----- {number + 1} -----")
        sys.stdout.write(f"{DIM}{text}{RESET}" if colourful else text)
        ending = Ending(options.max_new_tokens, model.eos_token_ids, model.stop_strings, decode)
        with SourceStream(ending, prompt=prompt) as shown:
            seeds: Any = {"seed": options.sampling.seed, "request": number}
            result = generate(method, prompt, options.max_new_tokens, decode=decode, callback=shown.record, **seeds)
            shown.finish(result.text or "")
    print()


def _measure(methods: Mapping[str, Method], prompts: Sequence[Sequence[int]], options: Options) -> dict[str, Any]:
    """Run the methods in turn, several times; return the figures of the turn with the last one's median ratio.

    All figures are those of one turn, so that they agree with one another.
    """
    results: dict[str, list[Generation]] = {}
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for repeat in range(options.repeats + 1):
        for name, method in methods.items():
            started = time.perf_counter()
            results[name] = [_one(method, prompt, number, options) for number, prompt in enumerate(prompts)]
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


def _one(method: Method, prompt: Sequence[int], number: int, options: Options) -> Generation:
    from ..generation import generate

    return generate(method, prompt, options.max_new_tokens, stop_strings=(), seed=options.sampling.seed, request=number)


def _machine(model: Transformer, options: Options) -> dict[str, Any]:
    import torch

    return {
        "model": model.name,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "threads": torch.get_num_threads(),
        **asdict(options.sampling),
        "max_new_tokens": options.max_new_tokens,
        "repeats": options.repeats,
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
        f"{'':22}{'tokens':>8}{'passes':>8}{'tokens per pass':>17}{'ms per pass':>13}{'seconds':>9}{'tokens per s':>14}"
        f"{'ratio':>7}"
    )
    for name, row in rows.items():
        print(
            f"{name:22}{row['tokens']:8}{row['num_forward_passes']:8}{row['tokens_per_forward']:17.2f}"
            f"{row['milliseconds_per_pass']:13.2f}{row['seconds']:9.2f}{row['tokens_per_second']:14.0f}"
            f"{row['ratio_to_plain']:7.2f}"
        )
    for name, row in list(rows.items())[1:]:
        fewer = row["tokens_per_forward"] / rows[PLAIN]["tokens_per_forward"]
        dearer = row["milliseconds_per_pass"] / rows[PLAIN]["milliseconds_per_pass"]
        speed = row["ratio_to_plain"]
        comparison = "faster than" if speed > 1.02 else "slower than" if speed < 0.98 else "as fast as"
        print(
            f"{name} gets {fewer:.2f} times the tokens out of a pass, which takes {dearer:.2f} times as long: on this "
            f"machine {speed:.2f} times the speed, {comparison} plain decoding."
        )
