"""Train look-ahead vectors for a frozen model, on text of yours or on text that the model writes itself.

  pass-sampling train --model FOLDER --text CORPUS --output VECTORS
  pass-sampling train --model FOLDER --self --output VECTORS
  pass-sampling train --output VECTORS --standard-library        for the small model in the box

Minutes and memory are stated before it starts. A run that is killed goes on, at most 20 seconds behind where it was,
when the same command is given again. What is measured at the end is the expected acceptance on text held out, at the
sampling that is given.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .learning_text import OWN_TOKENS, check_own, own_text_file, read_tokens, written_tokens
from .options import (
    add_json,
    add_machine,
    add_model,
    add_sampling,
    add_text,
    check_new_folder,
    open_model,
    read_training_texts,
    sampling_of,
)
from .progress import Bar, forecast

if TYPE_CHECKING:
    from ..train import TrainConfig

HELP = "train look-ahead vectors for a frozen model"


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
        "--num-lookahead", type=int, default=4, metavar="L", help="how many vectors; default: %(default)s"
    )
    parser.add_argument(
        "--loss",
        choices=("kl", "cross-entropy"),
        default="kl",
        help="kl: towards the model's own laws; cross-entropy: on the text, as in the paper; default: %(default)s",
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
        "--learning-rate",
        type=float,
        default=0.05,
        metavar="X",
        help="how far a step goes, at most; default: %(default)s",
    )
    add_sampling(parser)
    add_machine(parser)
    add_json(parser)


def run(arguments: argparse.Namespace) -> None:
    """Read or write the text, train, print what came of it."""
    from ..train import TrainConfig, train

    check_new_folder(arguments.output, "look-ahead vectors")
    config = TrainConfig(
        num_lookahead=arguments.num_lookahead,
        sampling=sampling_of(arguments),
        loss=arguments.loss,
        num_steps=arguments.num_steps,
        batch_size=arguments.batch_size,
        context=arguments.context,
        num_anchors=arguments.num_anchors,
        learning_rate=arguments.learning_rate,
        seed=arguments.seed,
    )
    check_own(config, arguments)
    texts = {} if arguments.own else read_training_texts(arguments)
    model = open_model(arguments)
    if arguments.own:
        training, held_out = written_tokens(model, config, arguments)
    else:
        training, held_out = read_tokens(texts, model, config, arguments)
    with Bar("training", quiet=arguments.json) as bar:
        lookahead = train(model, training, held_out, arguments.output, config, lambda news: _report(news, bar))
    own_text_file(arguments.output).unlink(missing_ok=True)
    if arguments.json:
        print(json.dumps({"output": str(arguments.output), **lookahead.training}, indent=2, allow_nan=False))
        return
    _print_outcome(lookahead.training["held_out"], config, arguments)


def _report(news: dict[str, Any], bar: Bar) -> None:
    if "seconds_per_step" in news:
        bar.first = news["first_step"]
        bar.note(forecast(news))
    elif "step" in news:
        bar.show(news["step"], news["num_steps"], loss=f"{news['loss']:.3f}")


def _print_outcome(held_out: dict[str, Any], config: TrainConfig, arguments: argparse.Namespace) -> None:
    sampling = config.sampling
    print(
        f"expected acceptance on held-out text at temperature {sampling.temperature:g}, top-k {sampling.top_k}, "
        f"top-p {sampling.top_p:g}"
    )
    print("draft          " + "".join(f"{i + 1:>8}" for i in range(config.num_lookahead)))
    print("these vectors  " + "".join(f"{value:8.3f}" for value in held_out["acceptance"]))
    print("random vectors " + "".join(f"{value:8.3f}" for value in held_out["random_acceptance"]))
    print("a fixed token  " + "".join(f"{value:8.3f}" for value in held_out["fixed_token_acceptance"]))
    print(f"saved in {arguments.output}")
