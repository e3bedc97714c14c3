"""Watch a model write with PaSS, every token in the colour of how it came; then see what that cost."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from pass_sampling.reference.config import check_context, check_prompt
from pass_sampling.reference.ending import Ending

from ..bench.figures import rate_of
from ..bench.runs import Entry, method_writer, run_all
from ..checkpoint.gguf import fetched_folder
from ..checkpoints import PROMPTS
from ..decode_options import DecodeOptions, Unavailable, is_bundled
from ..generation import generate
from ..hf.text_decoder import decoder_of
from ..make_method import make_method
from ..methods import Method
from ..training.tokens import load_tokenizer
from .commands import Demo, Generate
from .console import DIM, RESET, SourceStream, encode_prompt, is_colourful, legend
from .generate import run_generate
from .options import ModelOptions
from .plan import find_plan

PLAIN = "plain decoding"
REAL, QUESTION = "smollm2-135m", "Explain in three sentences why the sky is blue."
DRAFTING = {"PaSS": "pass", "PaSS, one call": "pass-one-call"}  # as published, and ours


def run_demo(options: Demo) -> None:
    """Show the texts, then the figures."""
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
    machine = {
        "model": model.name,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "threads": torch.get_num_threads(),
        **asdict(options.sampling),
        "max_new_tokens": options.max_new_tokens,
        "repeats": options.repeats,
    }
    if options.json:
        print(json.dumps({"rows": rows, **machine}, indent=2, allow_nan=False))
        return
    _print_table(rows, machine)
    if is_bundled(target.model):
        _real_model()


def _real_model() -> None:
    """Let a real model answer, if it has been fetched; else say how to see it."""
    if not fetched_folder(REAL).is_dir():
        print("\nA real model, SmolLM2-135M-Instruct, answers: make demo-chat, or pass-sampling fetch smollm2-135m")
        return
    print(f"\n----- {REAL}: {QUESTION} -----", flush=True)
    run_generate(Generate(ModelOptions(Path(REAL)), prompt=QUESTION, chat=True, max_new_tokens=100))


def _methods(options: Demo, model: Any, folder: Path) -> dict[str, Method]:
    """Return plain decoding and the uses of the vectors: those with an adapter or a head serve one call alone."""
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
    method: Method, texts: Sequence[str], prompts: Sequence[Sequence[int]], tokenizer: Any, options: Demo
) -> None:
    """Write the texts with PaSS, in colour."""
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


def _measure(methods: Mapping[str, Method], prompts: Sequence[Sequence[int]], options: Demo) -> dict[str, Any]:
    """Let the methods write in turn; return the figures of the run with the last one's median ratio.

    All figures are those of one run, so that they agree with one another.
    """
    model = methods[PLAIN].model
    entries = [Entry(name, method_writer(method, model.eos_token_ids)) for name, method in methods.items()]
    sizes = options.max_new_tokens, options.repeats, options.sampling.seed
    runs = run_all(entries, prompts, *sizes, model.device, may_end=True)
    rates = {name: [rate_of(texts) for texts in repeats] for name, repeats in runs.items()}
    ratios = [mine / plain for mine, plain in zip(rates[list(methods)[-1]], rates[PLAIN], strict=True)]
    median = ratios.index(statistics.median_low(ratios))
    rows = {}
    for name, repeats in runs.items():
        texts = repeats[median]
        tokens, passes = sum(len(text.tokens) for text in texts), sum(text.num_forward_passes for text in texts)
        seconds = sum(text.seconds for text in texts)
        rows[name] = {
            "tokens": tokens,
            "num_forward_passes": passes,
            "tokens_per_forward": tokens / passes,
            "positions_per_forward": sum(text.num_positions for text in texts) / passes,
            "seconds": seconds,
            "tokens_per_second": rates[name][median],
            "milliseconds_per_pass": 1000 * seconds / passes,
            "ratio_to_plain": rates[name][median] / rates[PLAIN][median],
        }
    return rows


def _print_table(rows: dict[str, Any], machine: dict[str, Any]) -> None:
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
