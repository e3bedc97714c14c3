"""Texts as tokens: byte-level BPE tokenizers in transformers' form, and windows over the tokens of a text.

The order of the windows follows from a seed and a step number alone, so that a run can be resumed.

Glossary of shapes: N tokens of the whole text, B windows of a batch, T tokens of a window.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..outside import reason_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
PLAIN_CLASSES = ("TokenizersBackend", "PreTrainedTokenizerFast")


def train_tokenizer(texts: Iterable[str], vocab_size: int, context: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer: every text is representable, and decoding gives it back byte for byte.

    Raise ValueError for a vocabulary without room for the bytes and the end of text, or for texts too short to fill it.

    Source: Sennrich et al. 2016 (arXiv 1508.07909); Radford et al. 2019 for bytes as the alphabet.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    if vocab_size < 257:
        raise ValueError(f"vocab_size: found {vocab_size}, expected at least 257, the bytes and the end of text")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    settings: Any = {"vocab_size": vocab_size, "special_tokens": [END_OF_TEXT], "initial_alphabet": alphabet}
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(**settings, show_progress=False))
    if (found := tokenizer.get_vocab_size()) != vocab_size:
        raise ValueError(f"the text is too short: it gives a vocabulary of {found} tokens, expected {vocab_size}")
    ends = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "clean_up_tokenization_spaces": False}
    kind: Any = PreTrainedTokenizerFast
    return kind(tokenizer_object=tokenizer, model_max_length=context, **ends)  # type: ignore[no-any-return]


def load_tokenizer(folder: Path) -> Any:
    """Load the tokenizer in a model's folder; raise ValueError if there is none that transformers can read.

    `AutoTokenizer` imports the code of models, a second of CPU time, so it reads other classes than the plain one only.
    """
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        is_plain = (folder / "tokenizer.json").is_file() and settings.get("tokenizer_class") in PLAIN_CLASSES
    except (OSError, ValueError, AttributeError):
        is_plain = False  # AutoTokenizer has the better sentence
    if is_plain:
        from transformers import PreTrainedTokenizerFast as Kind
    else:
        from transformers import AutoTokenizer as Kind  # type: ignore[assignment]
    try:
        with _panics_as_errors():
            tokenizer = Kind.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
            tokenizer("a")  # some mistakes in its files show when it is used
        return tokenizer
    except Exception as error:  # transformers raises anything here
        reason = reason_of(error)
        raise ValueError(f"{folder} holds no tokenizer ({reason}), expected tokenizer.json") from None


def encode_texts(
    tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], end_of_text: int | None
) -> list[npt.NDArray[np.int64]]:
    """Return each text's tokens, and the end of text after them, where there is such a token."""
    encoded = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"] if texts else []
    end = [] if end_of_text is None else [end_of_text]
    return [np.array([*tokens, *end], np.int64) for tokens in encoded]


@contextmanager
def _panics_as_errors() -> Iterator[None]:
    """Raise RuntimeError for a panic in the tokenizers library, which is not an Exception."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise RuntimeError(str(error)) from None


def vocabulary_digest(tokenizer: Any) -> str:
    """Return a digest of what each token id means: tables of tokens fit only where it is the same."""
    pairs = sorted((int(number), str(token)) for token, number in tokenizer.get_vocab().items())
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class Windows:
    """Batches of windows over a long text: each epoch visits every window once, in a new order, at a new offset."""

    tokens: npt.NDArray[np.int64]  # [N]
    length: int  # T
    batch_size: int  # B
    seed: int
    moved: bool = True  # if not, every offset is 0: the same windows in every epoch

    def __post_init__(self) -> None:
        needed = self.length * (self.batch_size + 1)
        if len(self.tokens) < needed:
            what = f"batches of {self.batch_size} windows of {self.length}"
            raise ValueError(f"the text has {len(self.tokens)} tokens, expected at least {needed} for {what}")

    @property
    def batches_per_epoch(self) -> int:
        """Return how many batches visit the whole text once."""
        return (len(self.tokens) - self.length) // (self.length * self.batch_size)

    def starts(self, step: int) -> npt.NDArray[np.int64]:  # [B]
        """Return where the windows of a step begin; steps are counted from 0."""
        epoch, place = divmod(step, self.batches_per_epoch)
        generator = np.random.Generator(np.random.Philox(key=self.seed, counter=epoch))
        offset = int(generator.integers(self.length)) if self.moved else 0
        order = generator.permutation(self.batches_per_epoch * self.batch_size)
        return offset + self.length * order[place * self.batch_size : (place + 1) * self.batch_size]

    def batch(self, step: int) -> npt.NDArray[np.int64]:  # [B, T]
        """Return the batch of a step."""
        return np.stack([self.tokens[start : start + self.length] for start in self.starts(step)])


def evenly_spaced(
    tokens: npt.NDArray[np.int64],  # [N]
    length: int,
    most: int,
) -> npt.NDArray[np.int64]:  # [B, T]
    """Return at most `most` windows, spread evenly over the text; raise ValueError if it is shorter than one."""
    count = min(most, len(tokens) // length)
    if count == 0:
        raise ValueError(f"the held-out text has {len(tokens)} tokens, expected at least {length}, one window")
    starts = np.linspace(0, len(tokens) - length, count).astype(int)
    return np.stack([tokens[start : start + length] for start in starts])


def check_tokens(
    name: str,
    tokens: npt.NDArray[np.int64],  # [N]
    vocab_size: int,
) -> None:
    """Raise ValueError for a token outside the model's vocabulary: the text was encoded for another model."""
    for token in (int(tokens.min()), int(tokens.max())):
        if not 0 <= token < vocab_size:
            raise ValueError(f"{name}: found the token {token}, expected 0 to {vocab_size - 1}, the model's")
