"""Train a small base model from text: a Llama with a byte-level BPE tokenizer, saved as a Hugging Face folder.

  pass-sampling pretrain --text CORPUS --output FOLDER
  pass-sampling pretrain --standard-library --output FOLDER      as the bundled model was made
  pass-sampling pretrain --teacher MODEL --layers 2 --hidden-size 128 --heads 2 --text CORPUS --output FOLDER

With --teacher the new model drafts for MODEL: it takes its tokenizer and learns its distributions, and the chance that
its drafts are accepted is measured at the end.

Run the same command again to resume a run that was killed; at most 20 seconds of training are repeated. About 5 % of
the files, chosen by their names, are held out; near-duplicates stay on one side. Minutes and memory are stated after
the second step.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..decode_options import option
from .console import Bar, acceptance_lines, forecast
from .options import TextOptions, check_new_folder, json_option, output_option, read_names, same_fields

if TYPE_CHECKING:
    from ..training.pretrain import PretrainConfig

__all__ = ["HELP", "Options", "run"]

HELP = "train a small base model from text"
COMPILERS = ("c++", "g++", "clang++", "cl")
VOCAB_SIZE = 4096


@dataclass(frozen=True)
class Options:
    """Options of `pass-sampling pretrain`."""

    output: Path = output_option("model")
    texts: TextOptions = TextOptions()
    teacher: Path | None = option(
        help="a Hugging Face folder whose model is to be drafted for; default: none, the text itself is learned",
        metavar="FOLDER",
    )
    vocab_size: int | None = option(help=f"tokens of the vocabulary; default: {VOCAB_SIZE}, or the teacher's")
    hidden_size: int = option(320, "width of the model")
    intermediate_size: int = option(896, "width of the mlp")
    num_hidden_layers: int = option(6, "layers", flag="--layers")
    num_attention_heads: int = option(5, "query heads", flag="--heads")
    num_key_value_heads: int = option(1, "key and value heads", flag="--kv-heads")
    context: int = option(512, "the longest sequence, in tokens")
    num_steps: int = option(1600, "steps of training", flag="--steps")
    batch_size: int = option(16, "sequences per step")
    learning_rate: float = option(0.006, "the largest step size")
    seed: int = option(0, "the same seed, machine and settings give the same result")
    device: str = option("cpu", "device to compute on: cpu, cuda or cuda:N")
    compile: bool = option(False, "use torch.compile, which is faster and needs a C++ compiler")
    json: bool = json_option()

    def config(self) -> PretrainConfig:
        """Return what is trained, and how; the vocabulary is as large as the teacher's where no size is given."""
        from ..checkpoint.load import read_config
        from ..training.pretrain import PretrainConfig

        if self.teacher is not None and not self.teacher.is_dir():
            raise ValueError(f"--teacher: {self.teacher} is not a folder, expected a Hugging Face folder")
        default = VOCAB_SIZE
        if self.teacher is not None and self.vocab_size is None:
            default = read_config(self.teacher).vocab_size
        return PretrainConfig(**{"vocab_size": default} | same_fields(PretrainConfig, self))


def run(options: Options) -> None:
    """Read, train, print."""
    from transformers.utils import logging

    from ..model.precision import check_device
    from ..training.pretrain import pretrain

    check_new_folder(options.output, "model")
    config = options.config()
    check_device(options.device)
    if options.compile and not any(map(shutil.which, (os.environ.get("CXX") or "c++", *COMPILERS))):
        raise ValueError("--compile: found no C++ compiler, expected one of " + ", ".join(COMPILERS))
    listed = options.texts.held_out_list
    held_out = None if listed is None else read_names(listed)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # of writing the weights
    texts = options.texts.read()
    if listed is not None:
        options.texts.divided(texts, options.output)  # refuses a list of none or all of them
    with Bar("training", quiet=options.json) as bar:
        record = pretrain(
            options.output, texts, config, held_out, options.device, lambda news: _report(news, bar), options.teacher
        )
    if options.json:
        print(json.dumps({"output": str(options.output), **record}, indent=2, allow_nan=False))
        return
    print(
        f"{record['num_parameters'] / 1e6:.1f}M parameters, {record['training_tokens'] / 1e6:.1f}M tokens of text "
        f"({record['epochs']:g} times)"
    )
    print(
        f"held-out loss {record['held_out_loss']:.3f} nats per token of {record['bytes_per_token']:.2f} bytes, "
        f"{record['bits_per_byte']:.3f} bits per byte"
    )
    print(*acceptance_lines(record.get("acceptance", [])), f"saved in {options.output}", sep="\n")


def _report(news: dict[str, Any], bar: Bar) -> None:
    if "seconds_per_step" in news:
        bar.first = news.get("first_step", 0)
        bar.note(forecast(news))
    if "held_out_loss" in news:
        bar.note(f"step {news['step']}: held-out loss {news['held_out_loss']:.3f} nats per token")
    if "step" in news and bar.noted:  # minutes first
        bar.show(news["step"], news["num_steps"], loss=f"{news['loss']:.3f}")
