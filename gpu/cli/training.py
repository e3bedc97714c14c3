"""Train what drafts, and base models, from text: look-ahead vectors, small models, tables of n-grams."""

from __future__ import annotations

import math
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

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
from ..model.precision import check_device
from ..training.acceptance import drafter_acceptance
from ..training.config import TrainConfig
from ..training.ngram_counts import count_ngrams
from ..training.pretrain import SAMPLINGS, acceptance_record, pretrain
from ..training.resume import check_output
from ..training.text import in_turn, own_questions, own_text, read_texts, split_texts, standard_library
from ..training.tokens import encode_texts, evenly_spaced, load_tokenizer, vocabulary_digest
from ..training.train import train
from .commands import NGRAM_CONTEXT, Ngram, Pretrain, Train
from .console import Bar, Conversation, acceptance_lines, encode_prompt, print_json
from .options import ModelOptions, TextOptions, read_names

if TYPE_CHECKING:
    from ..training.acceptance import Trainable

Tokens = npt.NDArray[np.int64]
CONTROLS = {"random_": "random vectors", "fixed_token_": "a fixed token"}
HELD_OUT_PART = 0.1
OWN_LENGTH = 256  # tokens of an own text at most
HELD_OUT_FILES = 20  # with fewer files than this, the end of the text is held out instead of whole files


def run_train(options: Train) -> None:
    """Read or write the text, train, print the acceptance."""
    check_output(options.output, "look-ahead vectors")
    config, source, plain = options.config, options.texts, TrainConfig
    if config.head_alone and config.learning_rate != plain.learning_rate:
        raise ValueError("--learning-rate: found it with --head-alone, expected --matrix-learning-rate")
    has_parts = config.adapter_rank or config.head_width
    if not has_parts and config.matrix_learning_rate != plain.matrix_learning_rate:
        raise ValueError("--matrix-learning-rate: found it alone, expected --adapter-rank or --head-width with it")
    needed = config.context * (config.batch_size + 1)  # for one step, beside the part that is held out
    needed = max(needed + config.context, math.ceil(needed / (1 - HELD_OUT_PART)))
    if source.own and source.self_tokens < needed:
        raise ValueError(f"self_tokens: found {source.self_tokens}, expected at least {needed} for one step")
    texts, target = _read(source), options.target.fetched()
    model = _open(target)
    if source.own:
        training = [_own_text(model, target.model, options, config.context, config.sampling, config.seed)]
        held_out: list[Tokens] = []
    else:
        training, held_out = _encoded(source, texts, model, target.model)
        order = np.random.default_rng(config.seed)
        training, held_out = ([side[i] for i in order.permutation(len(side))] for side in (training, held_out))
    tokens = np.concatenate(training)
    cut = max(0, len(tokens) - max(config.context, int(HELD_OUT_PART * len(tokens))))
    sides = (tokens, np.concatenate(held_out)) if held_out else (tokens[:cut], tokens[cut:])
    with Bar("training", quiet=options.json) as bar:
        lookahead = train(model, *sides, options.output, config, bar.learn)
    _own_text_file(options.output).unlink(missing_ok=True)
    if options.json:
        print_json({"output": str(options.output), **lookahead.training})
        return
    sampling, held = config.sampling, lookahead.training["held_out"]
    settings = f"temperature {sampling.temperature:g}, top-k {sampling.top_k}, top-p {sampling.top_p:g}"
    rows = {"": "these parts" if has_parts else "these vectors", **CONTROLS}
    for title, name in ((f"at {settings}", ""), ("greedy", "greedy"), ("at temperature 1", "temperature_1")):
        found = held[name] if name else held
        print(f"expected acceptance on held-out text {title}")
        print("draft          " + "".join(f"{i + 1:>8}" for i in range(config.num_lookahead)) + "  tokens")
        for kind, who in rows.items():
            figures = [*found[f"{kind}acceptance"], found[f"{kind}expected_tokens"]]
            print(f"{who:15}" + "".join(f"{value:8.3f}" for value in figures))
    print("tokens: per pass that verifies and drafts, if drafts were accepted independently of one another")
    print(f"saved in {options.output}")


def run_pretrain(options: Pretrain) -> None:
    """Read, train, print."""
    check_output(options.output, "model")
    config, teacher, listed = options.config, options.teacher, options.texts.held_out_list
    if teacher is not None and not teacher.is_dir():
        raise ValueError(f"--teacher: {teacher} is not a folder, expected a Hugging Face folder")
    if teacher is not None and options.vocab_size is None:
        config = replace(config, vocab_size=read_config(teacher).vocab_size)
    check_device(options.device)
    if config.compile and not shutil.which(os.environ.get("CXX") or "c++"):
        raise ValueError("--compile: found no C++ compiler, expected c++, or another named by CXX")
    held_out = None if listed is None else read_names(listed)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # of writing the weights
    with Bar("training", quiet=options.json) as bar:
        texts = _read(options.texts, "--text PATH or --standard-library")
        record = pretrain(options.output, texts, config, held_out, options.device, bar.learn, teacher)
    if options.json:
        print_json({"output": str(options.output), **record})
        return
    print(
        f"{record['num_parameters'] / 1e6:.1f}M parameters, {record['training_tokens'] / 1e6:.1f}M tokens of text, "
        f"seen {record['epochs']:g} times"
    )
    print(
        f"held-out loss {record['held_out_loss']:.3f} nats per token of {record['bytes_per_token']:.2f} bytes, "
        f"{record['bits_per_byte']:.3f} bits per byte"
    )
    print(*acceptance_lines(record.get("acceptance", [])), f"saved in {options.output}", sep="\n")


def run_ngram(options: Ngram) -> None:
    """Read, count, measure, save, print."""
    check_output(options.output, "n-gram model")
    check_integer("num_sequences", options.num_sequences, 1, 2**31)
    texts, target, source = _read(options.texts), options.target.fetched(), options.texts
    model, tokenizer = target.load(), load_tokenizer(target.model)
    if source.own:
        length = min(OWN_LENGTH, model.max_position_embeddings)
        training, held_out = [_own_text(model, target.model, options, length, SAMPLINGS[1], 0)], list[Tokens]()
    else:
        begin = list(model.eos_token_ids[:1])  # the token that ends a text also comes before the next
        sides = _encoded(source, texts, model, target.model)
        training, held_out = ([np.array([*begin, *each], np.int64) for each in side] for side in sides)
    if not held_out:  # the end of each text
        cuts = [len(tokens) - int(HELD_OUT_PART * len(tokens)) for tokens in training]
        held_out = [tokens[cut:] for tokens, cut in zip(training, cuts, strict=True)]
        training = [tokens[:cut] for tokens, cut in zip(training, cuts, strict=True)]
    held = np.concatenate(held_out)
    if len(held) < 2:
        raise ValueError(f"--text: found {len(held)} tokens to hold out, expected at least 2, from a longer text")
    ngram = count_ngrams(training, model.vocab_size, options.config, model.name, vocabulary_digest(tokenizer))
    sequences = evenly_spaced(held, min(NGRAM_CONTEXT, model.max_position_embeddings, len(held)), options.num_sequences)
    samplings = [replace(each, top_k=min(each.top_k, model.vocab_size)) for each in SAMPLINGS]
    acceptance = acceptance_record(samplings, drafter_acceptance(model, ngram.to(model.device), sequences, samplings))
    measured = {"tokens": len(held), "looked_at": sequences.size, "acceptance": acceptance}
    ngram = replace(ngram, training={**ngram.training, "held_out": measured})
    ngram.save(options.output)
    _own_text_file(options.output).unlink(missing_ok=True)
    size = sum(file.stat().st_size for file in options.output.iterdir())
    num_ngrams = [ngram.vocab_size, *(len(order.tokens) for order in ngram.orders)]
    if options.json:
        print_json({"output": str(options.output), "bytes": size, "num_ngrams": num_ngrams, **ngram.training})
        return
    print("order  n-grams kept  of distinct  seen at least")
    for order, (kept, distinct) in enumerate(zip(num_ngrams, ngram.training["distinct"], strict=True), start=1):
        least = "" if order == 1 else f"{ngram.training['min_counts'][order - 2]:>9} times"
        print(f"{order:5}{kept:14,}{distinct:13,}{least}".rstrip())
    print(f"{size / 1e6:.2f} MB, {size / sum(num_ngrams):.1f} bytes per n-gram")
    print(*acceptance_lines(acceptance), f"saved in {options.output}", sep="\n")


def _read(options: TextOptions, instead: str = "--text PATH, --standard-library or --self") -> dict[str, str]:
    """Return the texts by name; none where the model writes its own."""
    if options.own or options.standard_library:
        return {} if options.own else standard_library()
    if not options.text:
        raise ValueError(f"found no text, expected {instead}")
    return read_texts(options.text)


def _open(target: ModelOptions) -> Trainable:
    """Load the model, by transformers where it is of none of this package's families."""
    if read_json(file_in(open_folder(target.model), "config.json")).get("model_type") in tuple(FAMILIES):
        return target.load()
    from ..hf.model import TransformersModel  # which loads much of transformers
    from ..hf.model_checks import load_with_transformers

    return TransformersModel(load_with_transformers(target.model, target.dtype, target.device))


def _encoded(
    options: TextOptions, texts: dict[str, str], model: Trainable, folder: Path
) -> tuple[list[Tokens], list[Tokens]]:
    """Return the tokens of texts to learn from and of those held out, each with the end of text after it.

    Whole texts are held out if they are listed or there are many, else none is.
    """
    listed = options.held_out_list
    if listed is None and options.standard_library and is_bundled(folder):
        listed = HELD_OUT
    names, held = sorted(texts), list[str]()
    if listed is not None or len(texts) >= HELD_OUT_FILES:
        names, held = split_texts(texts, held_out=None if listed is None else read_names(listed))
    end = model.eos_token_ids[0] if model.eos_token_ids else None
    found = encode_texts(load_tokenizer(folder), [texts[name] for name in [*names, *held]], end)
    return found[: len(names)], found[len(names) :]


def _own_text_file(output: Path) -> Path:
    """Return where text that the model wrote is kept until what learns from it is saved."""
    output = output.resolve()
    return output.with_name(output.name + ".text.safetensors")


def _own_text(
    model: Trainable, folder: Path, options: Train | Ngram, length: int, sampling: SamplingConfig, seed: int
) -> Tokens:
    """Let the model write the text."""
    own, room, begin = options.texts, model.max_position_embeddings, None
    if length > room:
        raise ValueError(f"context: found {length}, expected at most {room}, the model's")
    tokenizer = load_tokenizer(folder)
    if own.prompts is not None:
        texts = [question.turns[0] for question in read_prompts(own.prompts)]
        talk = Conversation(tokenizer, folder) if own.chat else None
        begun = [talk.tokens(text)[0] if talk else encode_prompt(tokenizer, text, "--prompts") for text in texts]
        begun = [tokens for tokens in begun if len(tokens) <= room - length]
        if not begun:
            raise ValueError(f"--prompts: found none of at most {room - length} tokens, expected room for an answer")
        begin = in_turn(begun, seed)
    elif own.chat:
        begin = own_questions(model, *Conversation(tokenizer, folder).around(), seed)
    with Bar("writing", unit="token", quiet=options.json) as bar:
        sizes, file = (own.self_tokens, length), _own_text_file(options.output)
        return own_text(model, *sizes, sampling, seed, file, lambda done: bar.show(done, own.self_tokens), begin)
