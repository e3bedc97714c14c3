"""Count an n-gram model for a model's tokenizer: a drafter that costs no pass.

  pass-sampling ngram --model FOLDER --text CORPUS --output NGRAM
  pass-sampling ngram --output NGRAM --standard-library        for the bundled model

A part of the text is held out: whole files if there are many, else the end of each. Perplexity is measured on it, and
the chance that the model accepts a draft, at temperature 1 and at temperature 0.8 with top-k 10.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..decode_options import option
from .console import acceptance_lines
from .options import ModelOptions, TextOptions, check_new_folder, encoded, json_option, output_option

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from ..drafters import NgramModel
    from ..model.transformer import Transformer

    Tokens = npt.NDArray[np.int64]

__all__ = ["HELP", "Options", "run"]

HELP = "count an n-gram model that drafts"
SAMPLINGS = ((1.0, 0), (0.8, 10))  # temperature, top-k
CONTEXT = 512  # tokens of a held-out sequence
HELD_OUT_PART = 0.1


@dataclass(frozen=True)
class Options:
    """Options of `pass-sampling ngram`."""

    output: Path = output_option("n-gram model")
    target: ModelOptions = ModelOptions()
    texts: TextOptions = TextOptions()
    order: int = option(4, "tokens of the longest n-grams, 1 to 4")
    min_counts: tuple[int, ...] = option(
        (2,),
        "leave out n-grams that are rarer: a number for each order from 2 on, or one for all; default: 2",
        flag="--min-count",
        metavar="N",
    )
    max_successors: int = option(256, "how many tokens each context proposes at most")
    max_megabytes: float = option(64.0, "leave out more rare n-grams until the model is no larger")
    num_sequences: int = option(64, f"sequences of {CONTEXT} tokens to measure on", flag="--held-out-sequences")
    json: bool = json_option()


def run(options: Options) -> None:
    """Read, count, measure, save, print."""
    from pass_sampling.reference.config import check_integer

    from ..training.ngram_counts import NgramConfig, count_ngrams
    from ..training.tokens import load_tokenizer, vocabulary_digest

    check_new_folder(options.output, "n-gram model")
    check_integer("num_sequences", options.num_sequences, 1, 2**31)
    config = NgramConfig(options.order, options.min_counts, options.max_successors, options.max_megabytes)
    texts, target = options.texts.read(), options.target.fetched()
    model, tokenizer = target.load(), load_tokenizer(target.model)
    names, held = options.texts.divided(texts, target.model)
    training, held_out = (
        _tokens([texts[name] for name in side], tokenizer, model, target.model) for side in (names, held)
    )
    if not held:  # the end of each text
        cuts = [len(tokens) - int(HELD_OUT_PART * len(tokens)) for tokens in training]
        held_out = [tokens[cut:] for tokens, cut in zip(training, cuts, strict=True)]
        training = [tokens[:cut] for tokens, cut in zip(training, cuts, strict=True)]
    count = sum(map(len, held_out))
    if count < 2:
        raise ValueError(f"--text: found {count} tokens to hold out, expected at least 2, so a longer text")
    ngram = count_ngrams(training, model.vocab_size, config, model.name, vocabulary_digest(tokenizer))
    figures = {"held_out": _measured(ngram, model, held_out, options.num_sequences)}
    ngram = replace(ngram, training={**ngram.training, **figures})
    ngram.save(options.output)
    size = sum(file.stat().st_size for file in options.output.iterdir())
    num_ngrams = [ngram.vocab_size, *(len(order.tokens) for order in ngram.orders)]
    result = {"output": str(options.output), "bytes": size, "num_ngrams": num_ngrams, **ngram.training}
    if options.json:
        print(json.dumps(result, indent=2, allow_nan=False))
    else:
        _print(result)


def _tokens(texts: list[str], tokenizer: Any, model: Transformer, folder: Path) -> list[Tokens]:
    """Return the tokens of each text; the token that ends a text also comes before the next."""
    import numpy as np

    begin = list(model.eos_token_ids[:1])
    return [np.array([*begin, *tokens], np.int64) for tokens in encoded(tokenizer, texts, model, folder)]


def _measured(ngram: NgramModel, model: Transformer, held_out: list[Tokens], most: int) -> dict[str, Any]:
    """Return perplexity and acceptance on held-out text."""
    import numpy as np

    from pass_sampling.reference.config import SamplingConfig

    from ..training.acceptance import drafter_acceptance, perplexity
    from ..training.tokens import evenly_spaced

    tokens, drafter = np.concatenate(held_out), ngram.to(model.device)
    sequences = evenly_spaced(tokens, min(CONTEXT, model.max_position_embeddings, len(tokens)), most)
    samplings = [SamplingConfig(temperature, min(top_k, model.vocab_size)) for temperature, top_k in SAMPLINGS]
    found = zip(samplings, drafter_acceptance(model, drafter, sequences, samplings), strict=True)
    return {
        "tokens": len(tokens),
        "looked_at": sequences.size,
        "perplexity": round(perplexity(drafter, sequences, model.device), 2),
        "acceptance": [
            {"temperature": each.temperature, "top_k": each.top_k, "expected": round(expected, 4)}
            for each, expected in found
        ],
    }


def _print(result: dict[str, Any]) -> None:
    print("order  n-grams kept  of distinct  seen at least")
    for order, (kept, distinct) in enumerate(zip(result["num_ngrams"], result["distinct"], strict=True), start=1):
        least = "" if order == 1 else f"{result['min_counts'][order - 2]:>9} times"
        print(f"{order:5}{kept:14,}{distinct:13,}{least}".rstrip())
    print(f"{result['bytes'] / 1e6:.2f} MB, {result['bytes'] / sum(result['num_ngrams']):.1f} bytes per n-gram")
    held_out = result["held_out"]
    print(f"perplexity {held_out['perplexity']:.1f} on {held_out['looked_at']:,} tokens held out")
    print(*acceptance_lines(held_out["acceptance"]), f"saved in {result['output']}", sep="\n")
