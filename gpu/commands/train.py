"""Train look-ahead vectors for a frozen model, on your own text or on text that the model writes itself.

  pass-sampling train --model FOLDER --text CORPUS --output VECTORS
  pass-sampling train --model FOLDER --self --output VECTORS
  pass-sampling train --output VECTORS --standard-library        for the bundled small model

With --adapter-rank, look-ahead rows also pass through low-rank terms beside the model's layers, and with --head-width a
small network tells drafts of one another. Both raise acceptance, and no row of the text meets them: its distribution
stays.
  pass-sampling train --text CORPUS --output FOLDER --num-lookahead 6 --adapter-rank 16 --head-width 512
The control of a head is one that drafts without look-ahead rows: --head-alone.

A model of another kind than Llama, Mistral, Qwen2 and Qwen3 is run by transformers, without an adapter; its vectors are
for transformers' generate, see docs/huggingface.md.

Minutes and memory are stated before it starts. A run that is killed goes on, at most 20 seconds after where it was,
when the same command is given again. What is measured at the end is the expected acceptance on text held out, at the
sampling that is given, greedy, and at temperature 1, beside that of untrained vectors.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .learning_text import OWN_TOKENS, check_own, open_trainable, own_text_file, read_tokens, written_tokens
from .options import (
    add_json,
    add_machine,
    add_model,
    add_sampling,
    add_text,
    check_new_folder,
    read_training_texts,
    sampling_of,
)
from .progress import Bar, forecast

if TYPE_CHECKING:
    from ..training.train import TrainConfig

HELP = "train look-ahead vectors for a frozen model"
CONTROLS = {"random_": "random vectors", "fixed_token_": "a fixed token"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    add_model(parser)
    add_text(parser)
    parser.add_argument(
        "--self", action="store_true", dest="own", help="learn from text that the model writes itself instead"
    )
    parser.add_argument(
        "--self-tokens", type=int, metavar="N", help=f"how many tokens it writes for --self; default: {OWN_TOKENS}"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="a new folder for the vectors")
    parser.add_argument(
        "--begin",
        type=Path,
        metavar="FOLDER",
        help="go on from these vectors and what was trained with them, of the same sizes; default: from nothing",
    )
    parser.add_argument(
        "--num-lookahead", type=int, default=4, metavar="L", help="how many vectors; default: %(default)s"
    )
    parser.add_argument(
        "--adapter-rank", type=int, default=0, metavar="R", help="rank of an adapter at look-ahead rows; default: none"
    )
    parser.add_argument("--head-width", type=int, default=0, metavar="F", help="width of a sampler head; default: none")
    parser.add_argument("--head-alone", action="store_true", help="train a head that drafts without look-ahead rows")
    parser.add_argument(
        "--loss",
        choices=("kl", "total-variation", "cross-entropy"),
        default="kl",
        help="kl, total-variation: towards the model's own distributions; cross-entropy: on the text, as in the paper; "
        "default: %(default)s",
    )
    parser.add_argument(
        "--loss-temperature",
        type=float,
        metavar="X",
        help="of the distributions in the loss; default: --temperature, with an adapter or a head 1",
    )
    parser.add_argument(
        "--depth-decay",
        type=float,
        default=1.0,
        metavar="X",
        help="what a draft weighs in the loss, over the one before it; default: %(default)s",
    )
    parser.add_argument(
        "--steps", type=int, default=150, dest="num_steps", metavar="N", help="steps of training; default: %(default)s"
    )
    parser.add_argument(
        "--batch-size", type=int, default=8, metavar="N", help="sequences per step; default: %(default)s"
    )
    parser.add_argument(
        "--context", type=int, default=256, metavar="N", help="tokens per sequence; default: %(default)s"
    )
    parser.add_argument(
        "--anchors",
        type=int,
        default=64,
        dest="num_anchors",
        metavar="N",
        help="places to draft at in each sequence; default: %(default)s",
    )
    parser.add_argument(
        "--learning-rate", type=float, metavar="X", help="how far a step moves vectors, at most; default: 0.05"
    )
    parser.add_argument(
        "--matrix-learning-rate",
        type=float,
        metavar="X",
        help="how far a step moves an adapter and a head, at most; default: 0.003",
    )
    add_sampling(parser)
    add_machine(parser)
    add_json(parser)


def run(arguments: argparse.Namespace) -> None:
    """Read or write the text, train, print what came of it."""
    from ..lookahead.vectors import LookAhead
    from ..training.train import TrainConfig, train

    check_new_folder(arguments.output, "look-ahead vectors")
    begin = None if arguments.begin is None else LookAhead.load(arguments.begin)
    config = TrainConfig(
        num_lookahead=arguments.num_lookahead,
        sampling=sampling_of(arguments),
        loss=arguments.loss,
        num_steps=arguments.num_steps,
        batch_size=arguments.batch_size,
        context=arguments.context,
        num_anchors=arguments.num_anchors,
        seed=arguments.seed,
        adapter_rank=arguments.adapter_rank,
        head_width=arguments.head_width,
        head_alone=arguments.head_alone,
        depth_decay=arguments.depth_decay,
        loss_temperature=arguments.loss_temperature,
        **_learning_rates(arguments),
    )
    check_own(config, arguments)
    texts = {} if arguments.own else read_training_texts(arguments)
    model = open_trainable(arguments)
    if arguments.own:
        training, held_out = written_tokens(model, config, arguments)
    else:
        training, held_out = read_tokens(texts, model, config, arguments)
    with Bar("training", quiet=arguments.json) as bar:
        report = partial(_report, bar=bar)
        lookahead = train(model, training, held_out, arguments.output, config, report, begin)
    own_text_file(arguments.output).unlink(missing_ok=True)
    if arguments.json:
        print(json.dumps({"output": str(arguments.output), **lookahead.training}, indent=2, allow_nan=False))
        return
    _print_outcome(lookahead.training["held_out"], config, arguments)


def _learning_rates(arguments: argparse.Namespace) -> dict[str, float]:
    """Return those that are given; one for parts that are not trained would be ignored, so it is refused.

    Raises:
        ValueError: there is such a one.
    """
    if arguments.head_alone and arguments.learning_rate is not None:
        raise ValueError("--learning-rate: found it with --head-alone, expected --matrix-learning-rate")
    if not (arguments.adapter_rank or arguments.head_width) and arguments.matrix_learning_rate is not None:
        raise ValueError("--matrix-learning-rate: found it alone, expected --adapter-rank or --head-width with it")
    rates = {name: getattr(arguments, name) for name in ("learning_rate", "matrix_learning_rate")}
    return {name: rate for name, rate in rates.items() if rate is not None}


def _report(news: dict[str, Any], bar: Bar) -> None:
    if "seconds_per_step" in news:
        bar.first = news["first_step"]
        bar.note(forecast(news))
    elif "step" in news:
        bar.show(news["step"], news["num_steps"], loss=f"{news['loss']:.3f}")


def _print_outcome(held_out: dict[str, Any], config: TrainConfig, arguments: argparse.Namespace) -> None:
    sampling, plain = config.sampling, not (config.adapter_rank or config.head_width)
    settings = f"temperature {sampling.temperature:g}, top-k {sampling.top_k}, top-p {sampling.top_p:g}"
    rows = {"": "these vectors" if plain else "these parts", **CONTROLS}
    for said, name in ((f"at {settings}", ""), ("greedy", "greedy"), ("at temperature 1", "temperature_1")):
        found = held_out[name] if name else held_out
        print(f"expected acceptance on held-out text {said}")
        print("draft          " + "".join(f"{i + 1:>8}" for i in range(config.num_lookahead)) + "  tokens")
        for kind, who in rows.items():
            figures = [*found[f"{kind}acceptance"], found[f"{kind}expected_tokens"]]
            print(f"{who:15}" + "".join(f"{value:8.3f}" for value in figures))
    print("tokens: of a pass that verifies and drafts at once, were each draft accepted independently of the others")
    print(f"saved in {arguments.output}")
