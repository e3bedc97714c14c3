"""Train what drafts, and base models, from text: look-ahead vectors, small models, tables of n-grams."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from transformers.utils import logging

from pass_sampling.reference.checkpoint.folder import file_in, open_folder, read_json
from pass_sampling.reference.checkpoint.model_settings import FAMILIES
from pass_sampling.reference.config import SamplingConfig, check_integer

from ..bench.prompts import read_prompts
from ..checkpoint.load import read_config
from ..checkpoints import HELD_OUT
from ..decode_options import is_bundled
from ..drafters import NgramModel
from ..model.precision import check_device, has_bfloat16_units
from ..model.transformer import Transformer
from ..training.acceptance import drafter_acceptance
from ..training.config import TrainConfig
from ..training.ngram_counts import count_ngrams
from ..training.pretrain import SAMPLINGS, acceptance_record, pretrain
from ..training.resume import check_output, partial_file
from ..training.text import in_turn, own_questions, own_text, read_texts, split_texts, standard_library
from ..training.tokens import encode_texts, evenly_spaced, load_tokenizer, vocabulary_digest
from ..training.train import train
from .commands import NGRAM_CONTEXT, Ngram, Pretrain, Train
from .console import Bar, Conversation, acceptance_lines, encode_prompt
from .options import ModelOptions, TextOptions, read_names

if TYPE_CHECKING:
    from ..training.acceptance import Trainable

Tokens = npt.NDArray[np.int64]
CONTROLS = {"random_": "random vectors", "fixed_token_": "a fixed token"}
HELD_OUT_PART = 0.1
OWN_LENGTH = 256  # tokens of an own text at most
HELD_OUT_FILES = 20  # with fewer files than this, the end of the text is held out instead of whole files
COMPILERS = ("c++", "g++", "clang++", "cl")


def run_train(options: Train) -> None:
    """Read or write the text, train, print the acceptance."""
    _check_new_folder(options.output, "look-ahead vectors")
    _check(options)
    config = options.config
    texts = {} if options.own.wanted else _read(options.texts)
    target = options.target.fetched()
    model = _open(target)
    if options.own.wanted:
        tokens = _own_text(model, target.model, options, config.context, config.sampling, config.seed)
        training, held_out = _split(tokens, config.context)
    else:
        training, held_out = _encoded(texts, model, config, target.model, options)
    with Bar("training", quiet=options.json) as bar:
        lookahead = train(model, training, held_out, options.output, config, bar.learn)
    _own_text_file(options.output).unlink(missing_ok=True)
    if options.json:
        print(json.dumps({"output": str(options.output), **lookahead.training}, indent=2, allow_nan=False))
        return
    _print_acceptance(lookahead.training["held_out"], config)
    print(f"saved in {options.output}")


def _check(options: Train) -> None:
    """Refuse a learning rate for parts that are not trained, and text that is too short or given twice."""
    config = options.config
    if config.head_alone and config.learning_rate != TrainConfig.learning_rate:
        raise ValueError("--learning-rate: found it with --head-alone, expected --matrix-learning-rate")
    if (
        not (config.adapter_rank or config.head_width)
        and config.matrix_learning_rate != TrainConfig.matrix_learning_rate
    ):
        raise ValueError("--matrix-learning-rate: found it alone, expected --adapter-rank or --head-width with it")
    options.own.check(options.texts)
    if options.own.wanted and options.own.num_tokens < _least(config):
        raise ValueError(f"self_tokens: found {options.own.num_tokens}, {_expected(config)}")


def _own_text_file(output: Path) -> Path:
    """Return where text that the model wrote is kept until what learns from it is saved."""
    output = output.resolve()
    return output.with_name(output.name + ".text.safetensors")


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
    if target.dtype == "auto" and target.device == "cpu" and not has_bfloat16_units():
        target = replace(target, dtype="float32")  # passes over many rows, and gradients, have no layout of their own
    if read_json(file_in(open_folder(target.model), "config.json")).get("model_type") in tuple(FAMILIES):
        return target.load()
    from ..hf.model import TransformersModel  # which loads much of transformers
    from ..hf.model_checks import load_with_transformers

    if target.weights != "stored":
        raise ValueError(f"--weights: found {target.weights} with a model that transformers runs, expected stored")
    return TransformersModel(load_with_transformers(target.model, target.dtype, target.device))


def _encoded(
    texts: dict[str, str], model: Trainable, config: TrainConfig, folder: Path, options: Train
) -> tuple[Tokens, Tokens]:
    """Return the tokens to train on and those held out: whole files where there are enough of them."""
    order = np.random.default_rng(config.seed)
    names, held = (list(order.permutation(side)) for side in _divided(options.texts, texts, folder))
    tokens = _tokens_of(load_tokenizer(folder), [texts[name] for name in [*names, *held]], model, folder)
    training = np.concatenate(tokens[: len(names)])
    if held:
        return training, np.concatenate(tokens[len(names) :])
    if len(training) < _least(config):
        raise ValueError(f"--text: found {len(training)} tokens, {_expected(config)}")
    return _split(training, config.context)


def _own_text(
    model: Trainable, folder: Path, options: Train | Ngram, length: int, sampling: SamplingConfig, seed: int
) -> Tokens:
    """Let the model write the text."""
    own, room, begin = options.own, model.max_position_embeddings, None
    if length > room:
        raise ValueError(f"context: found {length}, expected at most {room}, the model's")
    if own.prompts is not None:
        begin = in_turn(_prompts(own.prompts, own.chat, folder, room - length), seed)
    elif own.chat:
        begin = own_questions(model, *Conversation(load_tokenizer(folder), folder).around(), seed)
    with Bar("writing", unit="token", quiet=options.json) as bar:
        file = _own_text_file(options.output)
        return own_text(
            model, own.num_tokens, length, sampling, seed, file, lambda done: bar.show(done, own.num_tokens), begin
        )


def _prompts(path: Path, chat: bool, folder: Path, room: int) -> list[list[int]]:
    """Return the prompts that the model answers; those that leave no room for an answer are passed over."""
    tokenizer, texts = load_tokenizer(folder), [question.turns[0] for question in read_prompts(path)]
    if chat:
        found = [Conversation(tokenizer, folder).tokens(text)[0] for text in texts]
    else:
        found = [encode_prompt(tokenizer, text, "--prompts") for text in texts]
    found = [tokens for tokens in found if len(tokens) <= room]
    if not found:
        raise ValueError(f"--prompts: found none of at most {room} tokens, expected some that leave room for an answer")
    return found


def _print_acceptance(held_out: dict[str, Any], config: TrainConfig) -> None:
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


def run_pretrain(options: Pretrain) -> None:
    """Read, train, print."""
    _check_new_folder(options.output, "model")
    if options.teacher is not None and not options.teacher.is_dir():
        raise ValueError(f"--teacher: {options.teacher} is not a folder, expected a Hugging Face folder")
    config = options.config
    if options.teacher is not None and options.vocab_size is None:
        config = replace(config, vocab_size=read_config(options.teacher).vocab_size)
    check_device(options.device)
    if config.compile and not any(map(shutil.which, (os.environ.get("CXX") or "c++", *COMPILERS))):
        raise ValueError("--compile: found no C++ compiler, expected one of " + ", ".join(COMPILERS))
    listed = options.texts.held_out_list
    held_out = None if listed is None else read_names(listed)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # of writing the weights
    texts = _read(options.texts, "--text PATH or --standard-library")
    if listed is not None:
        _divided(options.texts, texts, options.output)  # refuses a list of none or all of them
    with Bar("training", quiet=options.json) as bar:
        record = pretrain(options.output, texts, config, held_out, options.device, bar.learn, options.teacher)
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


def run_ngram(options: Ngram) -> None:
    """Read, count, measure, save, print."""
    _check_new_folder(options.output, "n-gram model")
    check_integer("num_sequences", options.num_sequences, 1, 2**31)
    options.own.check(options.texts)
    texts, target = {} if options.own.wanted else _read(options.texts), options.target.fetched()
    model, tokenizer = target.load(), load_tokenizer(target.model)
    names, held = ([], []) if options.own.wanted else _divided(options.texts, texts, target.model)
    begin = list(model.eos_token_ids[:1])  # the token that ends a text also comes before the next
    training, held_out = (
        [
            np.array([*begin, *tokens], np.int64)
            for tokens in _tokens_of(tokenizer, [texts[name] for name in side], model, target.model)
        ]
        for side in (names, held)
    )
    if options.own.wanted:
        length = min(OWN_LENGTH, model.max_position_embeddings)
        training = [_own_text(model, target.model, options, length, SAMPLINGS[1], 0)]
    if not held:  # the end of each text
        cuts = [len(tokens) - int(HELD_OUT_PART * len(tokens)) for tokens in training]
        held_out = [tokens[cut:] for tokens, cut in zip(training, cuts, strict=True)]
        training = [tokens[:cut] for tokens, cut in zip(training, cuts, strict=True)]
    count = sum(map(len, held_out))
    if count < 2:
        raise ValueError(f"--text: found {count} tokens to hold out, expected at least 2, so a longer text")
    ngram = count_ngrams(training, model.vocab_size, options.config, model.name, vocabulary_digest(tokenizer))
    figures = {"held_out": _measured(ngram, model, held_out, options.num_sequences)}
    ngram = replace(ngram, training={**ngram.training, **figures})
    ngram.save(options.output)
    _own_text_file(options.output).unlink(missing_ok=True)
    size = sum(file.stat().st_size for file in options.output.iterdir())
    num_ngrams = [ngram.vocab_size, *(len(order.tokens) for order in ngram.orders)]
    result = {"output": str(options.output), "bytes": size, "num_ngrams": num_ngrams, **ngram.training}
    if options.json:
        print(json.dumps(result, indent=2, allow_nan=False))
        return
    print("order  n-grams kept  of distinct  seen at least")
    for order, (kept, distinct) in enumerate(zip(result["num_ngrams"], result["distinct"], strict=True), start=1):
        least = "" if order == 1 else f"{result['min_counts'][order - 2]:>9} times"
        print(f"{order:5}{kept:14,}{distinct:13,}{least}".rstrip())
    print(f"{result['bytes'] / 1e6:.2f} MB, {result['bytes'] / sum(result['num_ngrams']):.1f} bytes per n-gram")
    held_out = result["held_out"]
    print(*acceptance_lines(held_out["acceptance"]), f"saved in {result['output']}", sep="\n")


def _measured(ngram: NgramModel, model: Transformer, held_out: list[Tokens], most: int) -> dict[str, Any]:
    """Return acceptance on held-out text."""
    tokens, drafter = np.concatenate(held_out), ngram.to(model.device)
    sequences = evenly_spaced(tokens, min(NGRAM_CONTEXT, model.max_position_embeddings, len(tokens)), most)
    samplings = [replace(each, top_k=min(each.top_k, model.vocab_size)) for each in SAMPLINGS]
    rates = drafter_acceptance(model, drafter, sequences, samplings)
    return {"tokens": len(tokens), "looked_at": sequences.size, "acceptance": acceptance_record(samplings, rates)}


def _read(options: TextOptions, instead: str = "--text PATH, --standard-library or --self") -> dict[str, str]:
    """Return the texts by name."""
    if options.standard_library:
        if options.text:
            raise ValueError("found both --text and --standard-library, expected one of them")
        return standard_library()
    if not options.text:
        raise ValueError(f"found no text, expected {instead}")
    return read_texts(options.text)


def _divided(options: TextOptions, texts: dict[str, str], model: Path) -> tuple[list[str], list[str]]:
    """Return the names of the texts to learn from and of those held out; of few texts, none is held out."""
    listed = options.held_out_list
    if listed is None and options.standard_library and is_bundled(model):
        listed = HELD_OUT
    if listed is None:
        return split_texts(texts) if len(texts) >= HELD_OUT_FILES else (sorted(texts), [])
    held = sorted(set(read_names(listed)) & set(texts))
    if not 0 < len(held) < len(texts):
        raise ValueError(f"{listed} names {len(held)} of the {len(texts)} texts, expected some of them and not all")
    return sorted(set(texts) - set(held)), held


def _tokens_of(tokenizer: Any, texts: list[str], model: Trainable, folder: Path) -> list[Tokens]:
    """Return each text's tokens with the end of text after them."""
    found = encode_texts(tokenizer, texts, model.eos_token_ids[0] if model.eos_token_ids else None)
    most = max((int(tokens.max()) for tokens in found if len(tokens)), default=0)
    if most >= model.vocab_size:
        raise ValueError(
            f"{folder}: its tokenizer gives the token {most}, expected at most {model.vocab_size - 1}, the model's last"
        )
    return found


def _check_new_folder(output: Path, what: str) -> None:
    """Refuse an output path that is taken or cannot be written, before hours are spent on its contents."""
    check_output(output, what)
    partial = partial_file(output)
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        os.lstat(partial.with_name(f".{partial.name}.new"))  # the longest name that will be written
    above = next(folder for folder in partial.parents if os.path.lexists(folder))
    try:
        os.rmdir(tempfile.mkdtemp(prefix=".pass-sampling-", dir=above))  # permissions alone do not tell
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"--output: {above} takes no new folder ({reason}), expected one that does") from None
