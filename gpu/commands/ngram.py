"""Count an n-gram model for a model's tokenizer: a drafter that costs no pass.

  pass-sampling ngram --model FOLDER --text CORPUS --output NGRAM
  pass-sampling ngram --output NGRAM --standard-library        for the bundled small model

A part of the text is held out, whole files if there are many, else the end of each. What is measured on it is the
perplexity, and the chance that the model accepts a draft, at temperature 1 and at temperature 0.8 with top-k 10.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .learning_text import HELD_OUT_PART, divided, encoded
from .options import add_json, add_machine, add_model, add_text, check_new_folder, open_model, read_training_texts
from .text import load_tokenizer

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from ..drafters import NgramModel
    from ..model.transformer import Transformer

    Tokens = npt.NDArray[np.int64]

HELP = "count an n-gram model that drafts"
SAMPLINGS = ((1.0, 0), (0.8, 10))
CONTEXT = 512  # tokens of a held-out sequence


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    add_model(parser)
    add_text(parser)
    parser.add_argument(
        "--output", type=Path, required=True, metavar="FOLDER", help="a new folder for the n-gram model"
    )
    parser.add_argument(
        "--order", type=int, default=4, metavar="N", help="tokens of the longest n-grams, 1 to 4; default: %(default)s"
    )
    parser.add_argument(
        "--min-count",
        type=int,
        nargs="+",
        default=[2],
        dest="min_counts",
        metavar="N",
        help="leave out what is rarer: a number for each order from 2 on, or one for all; default: 2",
    )
    parser.add_argument(
        "--max-successors",
        type=int,
        default=256,
        metavar="N",
        help="how many tokens each context proposes at most; default: %(default)s",
    )
    parser.add_argument(
        "--max-megabytes",
        type=float,
        default=64,
        metavar="X",
        help="leave out more of what is rare until it is no larger; default: %(default)s",
    )
    parser.add_argument(
        "--held-out-sequences",
        type=int,
        default=64,
        dest="num_sequences",
        metavar="N",
        help=f"sequences of {CONTEXT} tokens to measure on; default: %(default)s",
    )
    add_machine(parser)
    add_json(parser)


def run(arguments: argparse.Namespace) -> None:
    """Read, count, measure, save, print."""
    from pass_sampling.reference.config import check_integer

    from ..training.ngram_counts import NgramConfig, count_ngrams
    from ..training.tokens import vocabulary_digest

    check_new_folder(arguments.output, "n-gram model")
    check_integer("num_sequences", arguments.num_sequences, 1, 2**31)
    config = NgramConfig(
        arguments.order, tuple(arguments.min_counts), arguments.max_successors, arguments.max_megabytes
    )
    texts = read_training_texts(arguments)
    model = open_model(arguments)
    tokenizer = load_tokenizer(arguments.model)
    training, held_out = _tokens(texts, tokenizer, model, arguments)
    ngram = count_ngrams(training, model.vocab_size, config, model.name, vocabulary_digest(tokenizer))
    figures = {"held_out": _measured(ngram, model, held_out, arguments.num_sequences)}
    ngram = dataclasses.replace(ngram, training={**ngram.training, **figures})
    ngram.save(arguments.output)
    size = sum(file.stat().st_size for file in arguments.output.iterdir())
    num_ngrams = [ngram.vocab_size, *(len(order.tokens) for order in ngram.orders)]
    result = {"output": str(arguments.output), "bytes": size, "num_ngrams": num_ngrams, **ngram.training}
    if arguments.json:
        print(json.dumps(result, indent=2, allow_nan=False))
    else:
        _print_outcome(result)


def _tokens(
    texts: dict[str, str], tokenizer: Any, model: Transformer, arguments: argparse.Namespace
) -> tuple[list[Tokens], list[Tokens]]:
    """Return the tokens of each text to count, and of each held out."""
    import numpy as np

    names, held = divided(texts, arguments)
    begin = list(model.eos_token_ids[:1])  # what ends a text also stands before the next, so it may begin one
    training, held_out = (
        [
            np.array([*begin, *tokens], np.int64)
            for tokens in encoded(tokenizer, [texts[name] for name in side], model, arguments)
        ]
        for side in (names, held)
    )
    if not held:
        cuts = [len(tokens) - int(HELD_OUT_PART * len(tokens)) for tokens in training]
        held_out = [tokens[cut:] for tokens, cut in zip(training, cuts, strict=True)]
        training = [tokens[:cut] for tokens, cut in zip(training, cuts, strict=True)]
    count = sum(map(len, held_out))
    if count < 2:
        raise ValueError(f"--text: found {count} tokens to hold out, expected at least 2, so a longer text")
    return training, held_out


def _measured(ngram: NgramModel, model: Transformer, held_out: list[Tokens], most: int) -> dict[str, Any]:
    """Return how well it does on text held out."""
    import numpy as np

    from pass_sampling.reference.config import SamplingConfig

    from ..training.acceptance import drafter_acceptance, perplexity
    from ..training.tokens import evenly_spaced

    tokens, drafter = np.concatenate(held_out), ngram.to(model.device)
    sequences = evenly_spaced(tokens, min(CONTEXT, model.max_position_embeddings, len(tokens)), most)
    samplings = [
        SamplingConfig(temperature, min(top_k, model.vocab_size) if top_k else 0) for temperature, top_k in SAMPLINGS
    ]
    return {
        "tokens": len(tokens),
        "looked_at": sequences.size,
        "perplexity": round(perplexity(drafter, sequences, model.device), 2),
        "acceptance": [
            {"temperature": sampling.temperature, "top_k": sampling.top_k, "expected": round(expected, 4)}
            for sampling, expected in zip(
                samplings, drafter_acceptance(model, drafter, sequences, samplings), strict=True
            )
        ],
    }


def _print_outcome(result: dict[str, Any]) -> None:
    print("order  n-grams kept  of distinct  seen at least")
    for order, (kept, distinct) in enumerate(zip(result["num_ngrams"], result["distinct"], strict=True), start=1):
        least = "" if order == 1 else f"{result['min_counts'][order - 2]:>9} times"
        print(f"{order:5}{kept:14,}{distinct:13,}{least}".rstrip())
    count = sum(result["num_ngrams"])
    print(f"{result['bytes'] / 1e6:.2f} MB, {result['bytes'] / count:.1f} bytes per n-gram")
    held_out = result["held_out"]
    print(f"perplexity {held_out['perplexity']:.1f} on {held_out['looked_at']:,} tokens held out")
    for setting in held_out["acceptance"]:
        print(
            f"expected acceptance of its drafts at temperature {setting['temperature']:g}, top-k {setting['top_k']}: "
            f"{setting['expected']:.3f}"
        )
    print(f"saved in {result['output']}")
