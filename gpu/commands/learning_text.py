"""What look-ahead vectors learn from: text that is there, or that the model writes; and the part of it held out.

Glossary of shapes: N tokens to learn from, M tokens held out.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoints import HELD_OUT
from .options import is_bundled, named_held_out, open_model
from .places import fetch_folders
from .progress import Bar
from .text import load_tokenizer

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from ..training.acceptance import Trainable
    from ..training.train import TrainConfig

    Tokens = npt.NDArray[np.int64]

__all__ = [
    "HELD_OUT_PART",
    "OWN_TOKENS",
    "check_own",
    "divided",
    "encoded",
    "own_text_file",
    "read_tokens",
    "written_tokens",
]

HELD_OUT_FILES = 20  # with fewer files than this, the end of the text is held out instead of whole files
HELD_OUT_PART = 0.1
OWN_TOKENS = 100_000


def check_own(config: TrainConfig, arguments: argparse.Namespace) -> None:
    """Refuse --self beside other text, and too little of it: that must not show when hours of writing are over."""
    from pass_sampling.reference.config import check_integer

    if not arguments.own:
        if arguments.self_tokens is not None:
            raise ValueError("--self-tokens: found it without --self, expected both or neither")
        return
    if arguments.text or arguments.standard_library:
        raise ValueError("found --self and other text, expected one of --self, --text and --standard-library")
    if arguments.self_tokens is None:
        arguments.self_tokens = OWN_TOKENS
    check_integer("self_tokens", arguments.self_tokens, 1, 2**40)
    least = _least(config)
    if arguments.self_tokens < least:
        raise ValueError(f"self_tokens: found {arguments.self_tokens}, {_expected(least, config)}")


def _least(config: TrainConfig) -> int:
    """Return how many tokens leave enough for one step when a part is held out."""
    needed = config.context * (config.batch_size + 1)
    return max(needed + config.context, math.ceil(needed / (1 - HELD_OUT_PART)))


def _expected(least: int, config: TrainConfig) -> str:
    sequences = f"batches of {config.batch_size} sequences of {config.context}"
    return f"expected at least {least} tokens for {sequences} and a part held out"


def _cut(count: int, context: int) -> int:
    """Return how many of the tokens to train on: the end, a tenth and at least one sequence, is held out."""
    return max(0, count - max(context, int(HELD_OUT_PART * count)))


def divided(texts: dict[str, str], arguments: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Return the names of the texts to learn from and of those held out; of few texts, none is held out.

    Raises:
        ValueError: the list of files to hold out names none of them, or all.
    """
    from ..training.text import split_texts

    listed = arguments.held_out_list
    if listed is None and arguments.standard_library and is_bundled(arguments.model):
        listed = HELD_OUT
    if listed is not None:
        held = sorted(set(named_held_out(listed)) & set(texts))
        names = sorted(set(texts) - set(held))
        if not held or not names:
            raise ValueError(f"{listed} names {len(held)} of the texts, expected some of them and not all")
        return names, held
    return split_texts(texts) if len(texts) >= HELD_OUT_FILES else (sorted(texts), [])


def open_trainable(arguments: argparse.Namespace) -> Trainable:
    """Load the model, by transformers where its kind is none of this package's own."""
    from pass_sampling.reference.checkpoint.folder import file_in, open_folder, read_json
    from pass_sampling.reference.checkpoint.model_settings import FAMILIES

    fetch_folders(arguments)
    if read_json(file_in(open_folder(arguments.model), "config.json")).get("model_type") in tuple(FAMILIES):
        return open_model(arguments)
    from ..hf.model import TransformersModel
    from ..hf.model_checks import load_with_transformers

    return TransformersModel(load_with_transformers(arguments.model, arguments.dtype, arguments.device))


def encoded(tokenizer: Any, texts: list[str], model: Trainable, arguments: argparse.Namespace) -> list[Tokens]:
    """Return each text's tokens with the end of text after them.

    Raises:
        ValueError: there is a token that the model does not have.
    """
    from ..training.tokens import encode_texts

    found = encode_texts(tokenizer, texts, model.eos_token_ids[0] if model.eos_token_ids else None)
    most = max((int(tokens.max()) for tokens in found if len(tokens)), default=0)
    if most >= model.vocab_size:
        raise ValueError(
            f"{arguments.model}: its tokenizer gives the token {most}, expected at most {model.vocab_size - 1}, "
            "the model's last"
        )
    return found


def read_tokens(
    texts: dict[str, str], model: Trainable, config: TrainConfig, arguments: argparse.Namespace
) -> tuple[Tokens, Tokens]:  # [N], [M]
    """Return the tokens to train on and those held out: whole files where there are enough of them."""
    import numpy as np

    tokenizer = load_tokenizer(arguments.model)
    names, held = divided(texts, arguments)
    order = np.random.default_rng(arguments.seed)
    names, held = list(order.permutation(names)), list(order.permutation(held))
    tokens = encoded(tokenizer, [texts[name] for name in [*names, *held]], model, arguments)
    training = np.concatenate(tokens[: len(names)])
    if held:
        return training, np.concatenate(tokens[len(names) :])
    if len(training) < _least(config):
        raise ValueError(f"--text: found {len(training)} tokens, {_expected(_least(config), config)}")
    cut = _cut(len(training), config.context)
    return training[:cut], training[cut:]


def written_tokens(
    model: Trainable, config: TrainConfig, arguments: argparse.Namespace
) -> tuple[Tokens, Tokens]:  # [N], [M]
    """Let the model write, and hold out the last tenth."""
    from ..training.text import own_text

    count = arguments.self_tokens
    if config.context > model.max_position_embeddings:
        raise ValueError(
            f"context: found {config.context}, expected at most {model.max_position_embeddings}, the model's"
        )
    with Bar("writing", unit="token", quiet=arguments.json) as bar:
        tokens = own_text(
            model,
            count,
            config.context,
            config.sampling,
            config.seed,
            own_text_file(arguments.output),
            lambda done: bar.show(done, count),
        )
    cut = _cut(len(tokens), config.context)
    return tokens[:cut], tokens[cut:]


def own_text_file(output: Path) -> Path:
    """Return where text that the model wrote is kept until the vectors are saved."""
    output = output.resolve()
    return output.with_name(output.name + ".text.safetensors")
