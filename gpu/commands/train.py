"""Train look-ahead vectors for a frozen model, on text of yours or on text that the model writes itself.

  pass-sampling train --model FOLDER --text CORPUS --output VECTORS
  pass-sampling train --model FOLDER --self --output VECTORS
  pass-sampling train --output VECTORS --standard-library        for the small model in the box

Minutes and memory are stated before it starts. A run that is killed goes on where it was when the same command is
given again. What is measured at the end is the expected acceptance on text held out, at the sampling that is given.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoints import MODEL
from .options import (
    add_json,
    add_machine,
    add_model,
    add_sampling,
    add_text,
    load_tokenizer,
    named_held_out,
    open_model,
    read_training_texts,
    sampling_of,
)
from .progress import Bar

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from ..train import TrainConfig
    from ..transformer import Transformer

    Tokens = npt.NDArray[np.int64]

HELP = "train look-ahead vectors for a frozen model"
HELD_OUT_FILES = 20  # with fewer files than this, the end of the text is held out instead of whole files
HELD_OUT_PART = 0.1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    add_model(parser)
    add_text(parser)
    parser.add_argument("--self", action="store_true", dest="own", help="text that the model writes itself")
    parser.add_argument(
        "--self-tokens", type=int, default=100_000, metavar="N", help="how much of it; default: %(default)s"
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
    parser.add_argument("--steps", type=int, default=200, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--batch-size", type=int, default=8, metavar="N", help="sequences per step; default: %(default)s"
    )
    parser.add_argument(
        "--context", type=int, default=256, metavar="N", help="tokens per sequence; default: %(default)s"
    )
    parser.add_argument(
        "--anchors", type=int, default=64, metavar="N", help="places to draft at in each sequence; default: %(default)s"
    )
    parser.add_argument("--learning-rate", type=float, default=0.01, metavar="X", help="default: %(default)s")
    add_sampling(parser)
    add_machine(parser)
    add_json(parser)


def run(arguments: argparse.Namespace) -> None:
    """Read or write the text, train, print what came of it."""
    from ..config import check_integer
    from ..train import TrainConfig, train
    from ..training.resume import check_output

    check_output(arguments.output, "look-ahead vectors")
    if arguments.own and (arguments.text or arguments.standard_library):
        raise ValueError("found --self and other text, expected one of them")
    check_integer("--self-tokens", arguments.self_tokens, 1, 2**40)
    config = TrainConfig(
        num_lookahead=arguments.num_lookahead,
        sampling=sampling_of(arguments),
        loss=arguments.loss,
        num_steps=arguments.steps,
        batch_size=arguments.batch_size,
        context=arguments.context,
        num_anchors=arguments.anchors,
        learning_rate=arguments.learning_rate,
        seed=arguments.seed,
    )
    texts = {} if arguments.own else read_training_texts(arguments)
    model = open_model(arguments)
    if arguments.own:
        training, held_out = _own_text(model, config, arguments)
    else:
        training, held_out = _tokens(texts, arguments, model)
    with Bar("training", quiet=arguments.json) as bar:
        lookahead = train(model, training, held_out, arguments.output, config, lambda news: _report(news, bar))
    _own_text_file(arguments.output).unlink(missing_ok=True)
    if arguments.json:
        print(json.dumps({"output": str(arguments.output), **lookahead.training}, indent=2))
        return
    _print_outcome(lookahead.training["held_out"], config, arguments)


def _tokens(texts: dict[str, str], arguments: argparse.Namespace, model: Transformer) -> tuple[Tokens, Tokens]:
    """Return the tokens to train on and those held out: whole files where there are enough of them."""
    import numpy as np

    from ..training.corpus import split_texts
    from ..training.tokenizer import encode_texts

    tokenizer = load_tokenizer(arguments.model)
    end = model.eos_token_ids[0] if model.eos_token_ids else None
    names = sorted(texts)
    if arguments.model == MODEL and arguments.standard_library:
        held = sorted(set(named_held_out()) & set(names))
        names = sorted(set(names) - set(held))
    elif len(names) >= HELD_OUT_FILES:
        names, held = split_texts(texts)
    else:
        held = []
    order = np.random.default_rng(arguments.seed)
    training = np.concatenate(encode_texts(tokenizer, [texts[name] for name in order.permutation(names)], end))
    if held:
        return training, np.concatenate(encode_texts(tokenizer, [texts[name] for name in order.permutation(held)], end))
    cut = len(training) - max(arguments.context, int(HELD_OUT_PART * len(training)))
    return training[: max(0, cut)], training[max(0, cut) :]


def _own_text(model: Transformer, config: TrainConfig, arguments: argparse.Namespace) -> tuple[Tokens, Tokens]:
    """Let the model write, and hold out the last tenth."""
    from ..training.own_text import own_text

    count = arguments.self_tokens
    with Bar("writing", unit="token", quiet=arguments.json) as bar:
        tokens = own_text(
            model,
            count,
            config.context,
            config.sampling,
            config.seed,
            _own_text_file(arguments.output),
            lambda done: bar.show(done, count),
        )
    cut = len(tokens) - max(config.context, int(HELD_OUT_PART * len(tokens)))
    return tokens[: max(0, cut)], tokens[max(0, cut) :]


def _own_text_file(output: Path) -> Path:
    output = output.resolve()
    return output.with_name(output.name + ".text.safetensors")


def _report(news: dict[str, Any], bar: Bar) -> None:
    if "seconds_per_step" in news:
        minutes = news["seconds_per_step"] * (news["num_steps"] - news["first_step"]) / 60
        memory = "" if news["memory"] is None else f" and {news['memory'] / 2**30:.1f} GiB of memory"
        resumed = f", going on behind step {news['first_step']}" if news["first_step"] else ""
        bar.note(f"training will take about {minutes:.1f} minutes{memory}{resumed}")
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
    print("a fixed token  " + "".join(f"{value:8.3f}" for value in held_out["fixed_token_acceptance"]))
    print(f"saved in {arguments.output}")
    sys.stdout.flush()
