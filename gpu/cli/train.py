"""Train look-ahead vectors for a frozen model, on your own text or on text that the model writes itself.

  pass-sampling train --model FOLDER --text CORPUS --output VECTORS
  pass-sampling train --model FOLDER --self --output VECTORS
  pass-sampling train --output VECTORS --standard-library        for the bundled model

With --adapter-rank, look-ahead rows also pass through low-rank terms beside the model's layers; with --head-width a
small network conditions each draft on the drafts before it. Both raise acceptance and leave the rows of the text alone,
so the distribution of a text stays the same.
  pass-sampling train --text CORPUS --output FOLDER --num-lookahead 6 --adapter-rank 16 --head-width 512
The control of a head is one that drafts without look-ahead rows: --head-alone.

Models of other kinds than Llama, Mistral, Qwen2 and Qwen3 are run by transformers, without an adapter; their vectors
are for transformers' generate, see docs/huggingface.md.

Minutes and memory are stated before training starts. Run the same command again to resume a run that was killed; at
most 20 seconds of training are repeated. At the end the expected acceptance on held-out text is measured at the given
sampling, greedy, and at temperature 1, beside that of untrained vectors.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..decode_options import flag_of, option
from .console import Bar, Conversation, encode_prompt, forecast
from .options import (
    ModelOptions,
    SamplingOptions,
    TextOptions,
    check_new_folder,
    encoded,
    json_option,
    output_option,
    same_fields,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from ..training.acceptance import Trainable
    from ..training.train import TrainConfig

    Tokens = npt.NDArray[np.int64]

__all__ = ["HELP", "Options", "run"]

HELP = "train look-ahead vectors for a frozen model"
CONTROLS = {"random_": "random vectors", "fixed_token_": "a fixed token"}
HELD_OUT_PART = 0.1
OWN_TOKENS = 100_000


@dataclass(frozen=True)
class Options:
    """Options of `pass-sampling train`."""

    output: Path = output_option("vectors")
    target: ModelOptions = ModelOptions()
    texts: TextOptions = TextOptions()
    own: bool = option(False, "learn from text that the model writes itself instead", flag="--self")
    self_tokens: int | None = option(help=f"how many tokens the model writes for --self; default: {OWN_TOKENS}")
    prompts: Path | None = option(
        help="what the model answers for --self, as `pass-sampling bench` reads it: a JSON object per line, with a "
        "prompt, or with turns of which the first is taken; default: nothing, it begins texts by itself",
        metavar="FILE",
    )
    chat: bool = option(False, "put prompts into the model's chat template")
    begin: Path | None = option(
        help="start from these vectors and what was trained with them, of the same sizes; default: from nothing",
        metavar="FOLDER",
    )
    num_lookahead: int = option(4, "how many vectors", metavar="L")
    adapter_rank: int = option(0, "rank of an adapter at look-ahead rows; default: none", metavar="R")
    head_width: int = option(0, "width of a sampler head; default: none", metavar="F")
    head_alone: bool = option(False, "train a head that drafts without look-ahead rows")
    block_heads: bool = option(False, "with --head-alone, a head for each draft: blockwise parallel decoding")
    draft_vocab_size: int = option(
        0,
        "draft among the N most frequent tokens of the text, which makes a draft cheap; default: among all",
        metavar="N",
    )
    loss: str = option(
        "kl",
        "kl, total-variation: towards the model's own distributions; cross-entropy: on the text, as in the paper",
        choices=("kl", "total-variation", "cross-entropy"),
    )
    loss_temperature: float | None = option(
        help="of the distributions in the loss; default: --temperature, with an adapter or a head 1"
    )
    depth_decay: float = option(1.0, "weight of a draft in the loss over that of the draft before it")
    num_steps: int = option(150, "steps of training", flag="--steps")
    batch_size: int = option(8, "sequences per step")
    context: int = option(256, "tokens per sequence")
    num_anchors: int = option(64, "places to draft at in each sequence", flag="--anchors")
    learning_rate: float | None = option(help="the largest step size of vectors; default: 0.05")
    matrix_learning_rate: float | None = option(help="the largest step size of adapter and head; default: 0.003")
    sampling: SamplingOptions = SamplingOptions()
    json: bool = json_option()

    @property
    def num_own_tokens(self) -> int:
        """How many tokens the model writes for --self."""
        return OWN_TOKENS if self.self_tokens is None else self.self_tokens

    @property
    def own_text_file(self) -> Path:
        """Where text that the model wrote is kept until the vectors are saved."""
        output = self.output.resolve()
        return output.with_name(output.name + ".text.safetensors")

    def config(self) -> TrainConfig:
        """Return what is trained, and how.

        Raises:
            ValueError: a learning rate is for parts that are not trained, or the text is too short or given twice.
        """
        from pass_sampling.reference.config import check_integer

        from ..training.train import TrainConfig

        if self.head_alone and self.learning_rate is not None:
            raise ValueError("--learning-rate: found it with --head-alone, expected --matrix-learning-rate")
        if not (self.adapter_rank or self.head_width) and self.matrix_learning_rate is not None:
            raise ValueError("--matrix-learning-rate: found it alone, expected --adapter-rank or --head-width with it")
        settings = {"sampling": self.sampling.config, "seed": self.sampling.seed}
        config = TrainConfig(**same_fields(TrainConfig, self) | settings)
        if self.chat and self.prompts is None:
            raise ValueError("--chat: found it without --prompts, expected both or neither")
        if not self.own:
            for name in ("self_tokens", "prompts"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{flag_of(name)}: found it without --self, expected both or neither")
            return config
        if self.texts.text or self.texts.standard_library:
            raise ValueError("found --self and other text, expected one of --self, --text and --standard-library")
        check_integer("self_tokens", self.num_own_tokens, 1, 2**40)
        if self.num_own_tokens < _least(config):
            raise ValueError(f"self_tokens: found {self.num_own_tokens}, {_expected(config)}")
        return config


def run(options: Options) -> None:
    """Read or write the text, train, print the acceptance."""
    from ..lookahead.vectors import LookAhead
    from ..training.train import train

    check_new_folder(options.output, "look-ahead vectors")
    begin = None if options.begin is None else LookAhead.load(options.begin)
    config = options.config()
    texts = {} if options.own else options.texts.read("--text PATH, --standard-library or --self")
    target = options.target.fetched()
    model = _open(target)
    if options.own:
        training, held_out = _written(model, config, options)
    else:
        training, held_out = _read(texts, model, config, target.model, options)
    with Bar("training", quiet=options.json) as bar:
        report = partial(_report, bar=bar)
        lookahead = train(model, training, held_out, options.output, config, report, begin)
    options.own_text_file.unlink(missing_ok=True)
    if options.json:
        print(json.dumps({"output": str(options.output), **lookahead.training}, indent=2, allow_nan=False))
        return
    _print(lookahead.training["held_out"], config)
    print(f"saved in {options.output}")


def _least(config: TrainConfig) -> int:
    """Return how many tokens leave enough for one step when a part is held out."""
    needed = config.context * (config.batch_size + 1)
    return max(needed + config.context, math.ceil(needed / (1 - HELD_OUT_PART)))


def _expected(config: TrainConfig) -> str:
    sequences = f"batches of {config.batch_size} sequences of {config.context}"
    return f"expected at least {_least(config)} tokens for {sequences} and a part held out"


def _split(tokens: Tokens, context: int) -> tuple[Tokens, Tokens]:
    """Hold out the end of the tokens: a tenth, and at least one sequence."""
    cut = max(0, len(tokens) - max(context, int(HELD_OUT_PART * len(tokens))))
    return tokens[:cut], tokens[cut:]


def _open(target: ModelOptions) -> Trainable:
    """Load the model, by transformers where it is of none of this package's families."""
    from pass_sampling.reference.checkpoint.folder import file_in, open_folder, read_json
    from pass_sampling.reference.checkpoint.model_settings import FAMILIES

    from ..model.precision import has_bfloat16_units

    if target.dtype == "auto" and target.device == "cpu" and not has_bfloat16_units():
        target = replace(target, dtype="float32")  # passes over many rows, and gradients, have no layout of their own
    if read_json(file_in(open_folder(target.model), "config.json")).get("model_type") in tuple(FAMILIES):
        return target.load()
    from ..hf.model import TransformersModel
    from ..hf.model_checks import load_with_transformers

    if target.weights != "stored":
        raise ValueError(f"--weights: found {target.weights} with a model that transformers runs, expected stored")
    return TransformersModel(load_with_transformers(target.model, target.dtype, target.device))


def _read(
    texts: dict[str, str], model: Trainable, config: TrainConfig, folder: Path, options: Options
) -> tuple[Tokens, Tokens]:
    """Return the tokens to train on and those held out: whole files where there are enough of them."""
    import numpy as np

    from ..training.tokens import load_tokenizer

    order = np.random.default_rng(config.seed)
    names, held = (list(order.permutation(side)) for side in options.texts.divided(texts, folder))
    tokens = encoded(load_tokenizer(folder), [texts[name] for name in [*names, *held]], model, folder)
    training = np.concatenate(tokens[: len(names)])
    if held:
        return training, np.concatenate(tokens[len(names) :])
    if len(training) < _least(config):
        raise ValueError(f"--text: found {len(training)} tokens, {_expected(config)}")
    return _split(training, config.context)


def _written(model: Trainable, config: TrainConfig, options: Options) -> tuple[Tokens, Tokens]:
    """Let the model write the text, or answer prompts."""
    from ..training.text import own_text

    prompts = () if options.prompts is None else _prompts(options, model.max_position_embeddings - config.context)
    count, room = options.num_own_tokens, model.max_position_embeddings
    if config.context > room:
        raise ValueError(f"context: found {config.context}, expected at most {room}, the model's")
    with Bar("writing", unit="token", quiet=options.json) as bar:
        tokens = own_text(
            model,
            count,
            config.context,
            config.sampling,
            config.seed,
            options.own_text_file,
            lambda done: bar.show(done, count),
            prompts,
        )
    return _split(tokens, config.context)


def _prompts(options: Options, room: int) -> list[list[int]]:
    """Return the prompts that the model answers; those that leave no room for an answer are passed over.

    Raises:
        ValueError: there is none.
    """
    from ..bench.prompts import read_prompts
    from ..training.tokens import load_tokenizer

    assert options.prompts is not None
    folder = options.target.fetched().model
    tokenizer, texts = load_tokenizer(folder), [question.turns[0] for question in read_prompts(options.prompts)]
    if options.chat:
        found = [Conversation(tokenizer, folder).tokens(text)[0] for text in texts]
    else:
        found = [encode_prompt(tokenizer, text, "--prompts") for text in texts]
    found = [tokens for tokens in found if len(tokens) <= room]
    if not found:
        raise ValueError(f"--prompts: found none of at most {room} tokens, expected some that leave room for an answer")
    return found


def _report(news: dict[str, Any], bar: Bar) -> None:
    if "seconds_per_step" in news:
        bar.first = news["first_step"]
        bar.note(forecast(news))
    elif "step" in news:
        bar.show(news["step"], news["num_steps"], loss=f"{news['loss']:.3f}")


def _print(held_out: dict[str, Any], config: TrainConfig) -> None:
    sampling, plain = config.sampling, not (config.adapter_rank or config.head_width)
    settings = f"temperature {sampling.temperature:g}, top-k {sampling.top_k}, top-p {sampling.top_p:g}"
    rows = {"": "these vectors" if plain else "these parts", **CONTROLS}
    for title, name in ((f"at {settings}", ""), ("greedy", "greedy"), ("at temperature 1", "temperature_1")):
        found = held_out[name] if name else held_out
        print(f"expected acceptance on held-out text {title}")
        print("draft          " + "".join(f"{i + 1:>8}" for i in range(config.num_lookahead)) + "  tokens")
        for kind, who in rows.items():
            figures = [*found[f"{kind}acceptance"], found[f"{kind}expected_tokens"]]
            print(f"{who:15}" + "".join(f"{value:8.3f}" for value in figures))
    print("tokens: per pass that verifies and drafts at once, if each draft were accepted independently of the others")
