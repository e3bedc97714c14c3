"""Tokenizers: a byte-level BPE from text, by the tokenizers library, in transformers' form; or what a folder holds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["END_OF_TEXT", "encode_texts", "load_tokenizer", "train_tokenizer", "vocabulary_digest"]

END_OF_TEXT = "<|endoftext|>"


def train_tokenizer(texts: Iterable[str], vocab_size: int, context: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer: every text is representable, and decoding gives it back byte for byte.

    Raises:
        ValueError: `vocab_size` has no room for the 256 bytes and the end of text, or the texts are too short to fill
            it.

    Source: Sennrich et al. 2016 (arXiv 1508.07909); Radford et al. 2019 for bytes as the alphabet.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    if vocab_size < 257:
        raise ValueError(f"vocab_size: found {vocab_size}, expected at least 257, the bytes and the end of text")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    found = tokenizer.get_vocab_size()
    if found != vocab_size:
        raise ValueError(f"the text is too short: it gives a vocabulary of {found} tokens, expected {vocab_size}")
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
        model_max_length=context,
    )


def load_tokenizer(folder: Path) -> Any:
    """Load the tokenizer that lies beside a model.

    Raises:
        ValueError: there is none that transformers can read.
    """
    from transformers import AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises anything here
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{folder} holds no tokenizer ({reason}), expected tokenizer.json or the like") from None


def encode_texts(
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[str],
    end_of_text: int | None,
) -> list[npt.NDArray[np.int64]]:
    """Return each text's tokens, and the end of text after them, where there is such a token."""
    encoded = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"] if texts else []
    end = [] if end_of_text is None else [end_of_text]
    return [np.array([*tokens, *end], np.int64) for tokens in encoded]


def vocabulary_digest(tokenizer: Any) -> str:
    """Return a digest of what each token id stands for: tables of tokens fit only where it is the same."""
    pairs = sorted((int(number), str(token)) for token, number in tokenizer.get_vocab().items())
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()
