"""Train a small base model from text: a Llama with a byte-level BPE tokenizer, saved as a Hugging Face folder.

  pass-sampling pretrain --text CORPUS --output FOLDER
  pass-sampling pretrain --standard-library --output FOLDER      as the model in the box was made

A run that is killed goes on where it was when the same command is given again. About 5 % of the files, chosen by their
names, are held out; near-duplicates stay on one side.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from .options import add_json, add_text, named_held_out, read_training_texts
from .progress import Bar

HELP = "train a small base model from text"
SIZES = (
    ("--vocab-size", 4096, "tokens of the vocabulary"),
    ("--hidden-size", 320, "width of the model"),
    ("--intermediate-size", 896, "width of the mlp"),
    ("--layers", 6, "layers"),
    ("--heads", 5, "query heads"),
    ("--kv-heads", 1, "key and value heads"),
    ("--context", 512, "the longest sequence, in tokens"),
    ("--steps", 2000, "steps of training"),
    ("--batch-size", 16, "sequences per step"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    add_text(parser)
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="a new folder for the model")
    parser.add_argument(
        "--held-out-list", type=Path, metavar="FILE", help="names of files to hold out, one per line, instead of 5 %%"
    )
    for name, default, meaning in SIZES:
        parser.add_argument(name, type=int, default=default, metavar="N", help=f"{meaning}; default: %(default)s")
    parser.add_argument("--learning-rate", type=float, default=0.006, metavar="X", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N; default: cpu")
    parser.add_argument("--compile", action="store_true", help="use torch.compile, which needs a C++ compiler: faster")
    add_json(parser)


def run(arguments: argparse.Namespace) -> None:
    """Read, train, print."""
    from ..pretrain import PretrainConfig, pretrain

    config = PretrainConfig(
        vocab_size=arguments.vocab_size,
        hidden_size=arguments.hidden_size,
        intermediate_size=arguments.intermediate_size,
        num_hidden_layers=arguments.layers,
        num_attention_heads=arguments.heads,
        num_key_value_heads=arguments.kv_heads,
        context=arguments.context,
        num_steps=arguments.steps,
        batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        seed=arguments.seed,
        compile=arguments.compile,
    )
    held_out = None if arguments.held_out_list is None else named_held_out(arguments.held_out_list)
    texts = read_training_texts(arguments)
    with Bar("training", quiet=arguments.json) as bar:
        record = pretrain(arguments.output, texts, config, held_out, arguments.device, lambda news: _report(news, bar))
    if arguments.json:
        print(json.dumps({"output": str(arguments.output), **record}, indent=2))
        return
    print(
        f"{record['num_parameters'] / 1e6:.1f}M parameters, {record['training_tokens'] / 1e6:.1f}M tokens of text "
        f"({record['epochs']:g} times)"
    )
    print(
        f"held-out loss {record['held_out_loss']:.3f} nats per token of {record['bytes_per_token']:.2f} bytes, "
        f"{record['bits_per_byte']:.3f} bits per byte"
    )
    print(f"saved in {arguments.output}")


def _report(news: dict[str, Any], bar: Bar) -> None:
    if "seconds_per_step" in news:
        bar.note(f"training will take about {news['seconds_per_step'] * news['num_steps'] / 60:.0f} minutes")
    if "held_out_loss" in news:
        bar.note(f"step {news['step']}: held-out loss {news['held_out_loss']:.3f} nats per token")
    if "step" in news:
        bar.show(news["step"], news["num_steps"], loss=f"{news['loss']:.3f}")
