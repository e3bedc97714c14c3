"""What training refuses, in one sentence: settings, texts, models and what was trained before."""

import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from folders import contents, edit_json, tiny_config, write_checkpoint
from pass_sampling.gpu import SamplingConfig
from pass_sampling.gpu.training.ngram_counts import NgramConfig, count_ngrams
from training import LOOK_AHEAD, TINY, TOKENS, TRAINERS, pretrained

NOT_POSITIVE = (0.0, -1.0, math.nan, math.inf)
POSITIVE_RATES = ("learning_rate", "matrix_learning_rate", "depth_decay")


def each(names: Any, values: Any, message: str) -> list[tuple[dict[str, Any], str]]:
    """Return a case for every name and value, with the same message after the name."""
    return [({name: value}, rf"^{name}: found {message.format(value)}") for name in names for value in values]


SETTINGS: dict[str, tuple[Any, list[tuple[dict[str, Any], str]]]] = {
    "look-ahead": (
        LOOK_AHEAD,
        [
            *each(("num_lookahead", "num_steps", "batch_size", "num_anchors"), [0], "0, expected an integer from 1"),
            *each(POSITIVE_RATES, NOT_POSITIVE, "{}, expected a positive number$"),
            *each(("adapter_rank", "head_width"), [-1], "-1, expected an integer from 0 to 65536$"),
            ({"context": 3}, r"^context: found 3, expected an integer from 4"),
            ({"loss": "mse"}, r"^loss: found 'mse', expected one of kl, cross-entropy$"),
            ({"depth_decay": 1.5}, r"^depth_decay: found 1.5, expected at most 1$"),
            (
                {"head_alone": True, "head_width": 4, "adapter_rank": 2},
                r"^head_alone: found it with an adapter, expected a head and no adapter",
            ),
        ],
    ),
    "base model": (
        TINY,
        [
            *each(("vocab_size", "hidden_size", "num_steps", "batch_size", "context"), [0], "0, "),
            *each(["learning_rate"], NOT_POSITIVE, "{}, expected a positive number$"),
            ({"hidden_size": 18}, r"^hidden_size: found 18, expected a multiple of twice the 2 heads$"),
            ({"num_key_value_heads": 3}, r"^num_key_value_heads: found 3, expected a divisor of the 2 heads$"),
        ],
    ),
    "n-grams": (
        NgramConfig(),
        [
            *each(["order"], [0, 5], "{}, expected an integer from 1 to 4$"),
            ({"min_counts": (0,)}, r"^min_counts: found 0, expected an integer from 1 to 2147483648$"),
            *[
                (
                    {"min_counts": counts},
                    rf"^min_counts: found {len(counts)} numbers, expected one, or 3, one for each order from 2 to 4$",
                )
                for counts in ((), (1, 2))
            ],
        ],
    ),
}


@pytest.mark.parametrize(
    ("config", "changes", "message"), [(config, *case) for config, cases in SETTINGS.values() for case in cases]
)
def test_settings_with_which_nothing_can_be_trained_are_refused(config, changes, message):
    with pytest.raises(ValueError, match=message):
        replace(config, **changes)


ONE = {"context": 4096, "batch_size": 1, "held_out": ["notes/text_03.py"]}
ARGUMENTS: dict[str, list[tuple[dict[str, Any], str]]] = {
    "vectors": [
        ({"training": TOKENS[:23]}, r"^the text has 23 tokens, expected at least 24 for batches of 2 windows of 8$"),
        ({"held_out": TOKENS[:7]}, r"^the held-out text has 7 tokens, expected at least 8, one window$"),
        ({"training": TOKENS + 1}, r"^training: found the token 23, expected 0 to 22, the model's$"),
        ({"context": 65}, r"^context: found 65, expected at most 64, the model's$"),
        ({"sampling": SamplingConfig(1.0, 24)}, r"^top_k: found 24, "),
    ],
    "base model": [
        ({"texts": {}}, r"^found 0 texts, too few to hold any out, expected at least 2"),
        ({"held_out": ["elsewhere"]}, r"^held_out names 0 of the 40 texts, expected some of them and not all$"),
        ({"vocab_size": 256}, r"^vocab_size: found 256, expected at least 257, the bytes and the end of text$"),
        ({"vocab_size": 9000}, r"^the text is too short: it gives a vocabulary of \d+ tokens, expected 9000$"),
        ({"batch_size": 5000}, r"^the text has \d+ tokens, expected at least 80016 for batches"),
        (ONE, r"^the held-out text has \d+ tokens"),
    ],
    "student": [
        ({"vocab_size": 301}, r"^vocab_size: found 301, expected 300, the teacher's$"),
        ({"context": 17}, r"^context: found 17, expected at most 16, the teacher's$"),
    ],
}


@pytest.mark.parametrize(
    ("trainer", "changes", "message"), [(trainer, *case) for trainer, cases in ARGUMENTS.items() for case in cases]
)
def test_texts_and_sizes_that_nothing_can_be_trained_with_are_refused(trainer, changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        TRAINERS[trainer](tmp_path / "out", **changes)
    assert os.listdir(tmp_path) == []


def test_a_teacher_that_cannot_teach_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    mute, wide = tmp_path / "mute", tmp_path / "wide"
    write_checkpoint(wide, tiny_config(vocab_size=280, max_position_embeddings=16))
    mute.mkdir()
    for file in pretrained().folder.iterdir():
        (mute / file.name).write_bytes(file.read_bytes())
        if file.name.startswith("tokenizer"):
            (wide / file.name).write_bytes(file.read_bytes())
    edit_json(mute / "tokenizer_config.json", eos_token=...)
    before = contents(tmp_path)
    for teacher, vocab_size, kind, message in (
        ("none", 300, FileNotFoundError, r"none is not a folder, expected one with config\.json"),
        ("mute", 300, ValueError, r"^teacher: found no end of text in the tokenizer of \S+mute, expected one"),
        ("wide", 300, ValueError, r"^vocab_size: found 300, expected 280, the teacher's$"),
        ("wide", 280, ValueError, r"^teacher: found the token \d+, expected 0 to 279, "),
    ):
        with pytest.raises(kind, match=message):
            TRAINERS["student"](tmp_path / "student", teacher=tmp_path / teacher, vocab_size=vocab_size)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("texts", "settings", "message"),
    [
        ([], {}, r"^found no tokens, expected some to count$"),
        ([[0, 3]], {}, r"^texts: found the token 3, expected 0 to 2, the model's$"),
    ],
)
def test_texts_that_cannot_be_counted_are_refused(texts: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        count_ngrams([np.array(text, dtype=np.int64) for text in texts], 3, NgramConfig(2, **settings))
