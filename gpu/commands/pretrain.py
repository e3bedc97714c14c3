"""Train a small base model from text: a Llama with a byte-level BPE tokenizer, saved as a Hugging Face folder.

  pass-sampling pretrain --text CORPUS --output FOLDER
  pass-sampling pretrain --standard-library --output FOLDER      as the bundled model was made
  pass-sampling pretrain --teacher MODEL --layers 2 --hidden-size 128 --heads 2 --text CORPUS --output FOLDER

With --teacher the new model is one that drafts for MODEL: it takes its tokenizer and learns its distributions, and the
chance that its drafts are accepted is measured at the end.

A run that is killed goes on, at most 20 seconds after where it was, when the same command is given again. About 5 %
of the files, chosen by their names, are held out; near-duplicates stay on one side. Minutes and memory are stated
after the second step.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from pathlib import Path
from typing import Any

from .options import add_device, add_json, add_seed, add_text, check_new_folder, named_held_out, read_training_texts
from .progress import Bar, forecast

HELP = "train a small base model from text"
COMPILERS = ("c++", "g++", "clang++", "cl")
SIZES = (
    ("--hidden-size", "hidden_size", "width of the model"),
    ("--intermediate-size", "intermediate_size", "width of the mlp"),
    ("--layers", "num_hidden_layers", "layers"),
    ("--heads", "num_attention_heads", "query heads"),
    ("--kv-heads", "num_key_value_heads", "key and value heads"),
    ("--context", "context", "the longest sequence, in tokens"),
    ("--steps", "num_steps", "steps of training"),
    ("--batch-size", "batch_size", "sequences per step"),
)
VOCAB_SIZE = 4096
DEFAULTS = (320, 896, 6, 5, 1, 512, 1600, 16)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    add_text(parser)
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="a new folder for the model")
    parser.add_argument(
        "--teacher",
        type=Path,
        metavar="FOLDER",
        help="a Hugging Face folder whose model is to be drafted for; default: none, the text itself is learned",
    )
    parser.add_argument(
        "--vocab-size",
        type=int,
        metavar="N",
        help=f"tokens of the vocabulary; default: {VOCAB_SIZE}, or the teacher's",
    )
    for (flag, name, meaning), default in zip(SIZES, DEFAULTS, strict=True):
        parser.add_argument(
            flag, type=int, default=default, dest=name, metavar="N", help=f"{meaning}; default: %(default)s"
        )
    parser.add_argument(
        "--learning-rate",
        type=float,
        default=0.006,
        metavar="X",
        help="how far a step goes, at most; default: %(default)s",
    )
    add_seed(parser)
    add_device(parser)
    parser.add_argument("--compile", action="store_true", help="use torch.compile, which needs a C++ compiler: faster")
    add_json(parser)


def run(arguments: argparse.Namespace) -> None:
    """Read, train, print."""
    from transformers.utils import logging

    from ..model.precision import check_device
    from ..training.pretrain import PretrainConfig, pretrain

    check_new_folder(arguments.output, "model")
    sizes = {name: getattr(arguments, name) for _, name, _ in SIZES}
    config = PretrainConfig(
        _vocab_size(arguments),
        **sizes,
        learning_rate=arguments.learning_rate,
        seed=arguments.seed,
        compile=arguments.compile,
    )
    check_device(arguments.device)
    if arguments.compile and not any(map(shutil.which, (os.environ.get("CXX") or "c++", *COMPILERS))):
        raise ValueError("--compile: found no C++ compiler, expected one of " + ", ".join(COMPILERS))
    held_out = None if arguments.held_out_list is None else named_held_out(arguments.held_out_list)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # of writing the weights
    texts = read_training_texts(arguments)
    if held_out is not None and not 0 < len(texts.keys() & set(held_out)) < len(texts):
        raise ValueError(
            f"{arguments.held_out_list} names {len(texts.keys() & set(held_out))} of the {len(texts)} texts, "
            "expected some of them and not all"
        )
    with Bar("training", quiet=arguments.json) as bar:
        record = pretrain(
            arguments.output,
            texts,
            config,
            held_out,
            arguments.device,
            lambda news: _report(news, bar),
            arguments.teacher,
        )
    if arguments.json:
        print(json.dumps({"output": str(arguments.output), **record}, indent=2, allow_nan=False))
        return
    print(
        f"{record['num_parameters'] / 1e6:.1f}M parameters, {record['training_tokens'] / 1e6:.1f}M tokens of text "
        f"({record['epochs']:g} times)"
    )
    print(
        f"held-out loss {record['held_out_loss']:.3f} nats per token of {record['bytes_per_token']:.2f} bytes, "
        f"{record['bits_per_byte']:.3f} bits per byte"
    )
    for setting in record.get("acceptance", []):
        print(
            f"expected acceptance of its drafts at temperature {setting['temperature']:g}, top-k {setting['top_k']}: "
            f"{setting['expected']:.3f}"
        )
    print(f"saved in {arguments.output}")


def _vocab_size(arguments: argparse.Namespace) -> int:
    """Return the size that was asked for; else the teacher's, else the default."""
    from ..checkpoint.load import read_config

    if arguments.teacher is not None and not arguments.teacher.is_dir():
        raise ValueError(f"--teacher: {arguments.teacher} is not a folder, expected a Hugging Face folder")
    if arguments.vocab_size is not None:
        return int(arguments.vocab_size)
    return VOCAB_SIZE if arguments.teacher is None else read_config(arguments.teacher).vocab_size


def _report(news: dict[str, Any], bar: Bar) -> None:
    if "seconds_per_step" in news:
        bar.first = news.get("first_step", 0)
        bar.note(forecast(news))
    if "held_out_loss" in news:
        bar.note(f"step {news['step']}: held-out loss {news['held_out_loss']:.3f} nats per token")
    if "step" in news and bar.noted:  # minutes first
        bar.show(news["step"], news["num_steps"], loss=f"{news['loss']:.3f}")
