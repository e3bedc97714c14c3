"""What folders of drafters hold: n-gram tables and look-ahead vectors with all their parts, and damage done to both."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from folders import as_numpy, contents, edit_json, module, tiny_config
from lookaheads import with_parts

CONFIG, ARRAYS = "config.json", "model.safetensors"
PRINT = "0123456789abcdef" * 4
SIZES = "num_hidden_layers hidden_size intermediate_size num_attention_heads num_key_value_heads head_dim".split()
TRAINING = {"steps": 7, "corpus": "the café", "losses": [2.5, 1.25]}
Shares = dict[tuple[int, ...], dict[int, float]]  # of the tokens after a context


@dataclass(frozen=True)
class Tables:
    """The same tables twice: as arrays, and as a dictionary for the slow definition."""

    unigram: np.ndarray
    orders: list[tuple[np.ndarray, np.ndarray, np.ndarray]]
    shares: Shares

    @property
    def vocab_size(self) -> int:
        return len(self.unigram)

    def model(self, name: str, **fields: Any) -> Any:
        """Return the model of a package that holds them."""
        home = module(name, "drafters.ngram")
        return home.NgramModel(self.unigram, tuple(home.NgramOrder(*arrays) for arrays in self.orders), **fields)


def random_tables(vocab_size: int, order: int, seed: int, density: float = 0.6) -> Tables:
    """Draw tables: contexts without an n-gram, n-grams without a share, shares that add up to nearly 1."""
    draw = np.random.default_rng(seed)
    contexts: list[tuple[int, ...]] = [(token,) for token in range(vocab_size)]
    orders, shares = [], {}
    for _ in range(order - 1):
        successors, tokens, codes, above = [], [], [], []
        for context in contexts:
            chosen = np.flatnonzero(draw.random(vocab_size) < density * draw.integers(0, 3) / 2)
            weights = draw.dirichlet(np.full(len(chosen), 0.5)) if len(chosen) else np.zeros(0)
            roots = np.floor(256 * np.sqrt(weights * draw.choice([0.3, 0.999]))) * (draw.random(len(chosen)) < 0.9)
            successors.append(len(chosen))
            tokens += chosen.tolist()
            codes += roots.tolist()
            above += [(*context, token) for token in chosen.tolist()]
            shares[context] = dict(zip(chosen.tolist(), (roots**2 / 65536).tolist(), strict=True))
        orders.append((np.array(successors), np.array(tokens, dtype=np.int64), np.array(codes, dtype=np.uint8)))
        contexts = above
    unigram = np.exp(draw.uniform(-5, 5, vocab_size)).astype(np.float32)
    return Tables(unigram, orders, shares)


def counted(package: str, seed: int = 0, order: int = 3, vocab_size: int = 6) -> Any:
    """Return an n-gram model with every field set."""
    return random_tables(vocab_size, order, seed).model(package, base_model="tiny", tokenizer=PRINT, training=TRAINING)


def trained(package: str, parts: str = "adapter and head", seed: int = 0, num_lookahead: int = 3) -> Any:
    """Return a look-ahead with every field set, for the model that `write_checkpoint` writes."""
    config = tiny_config()
    vectors = with_parts(package, SimpleNamespace(config=config, hidden_size=24), parts, num_lookahead, seed)
    return replace(
        vectors,
        base_model="tiny",
        base_shapes={name: getattr(config, name) for name in ("vocab_size", *SIZES)},
        fingerprint=PRINT,
        sampling=module(package, "config").SamplingConfig(0.8, 10, 0.95),
        training=TRAINING,
    )


def plain(value: Any) -> Any:
    """Return all that an object holds, wherever it is, in plain Python."""
    if is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value) if field.name != "device"}
    if isinstance(value, Mapping):
        return {name: plain(each) for name, each in value.items()}
    if isinstance(value, tuple):
        return [plain(each) for each in value]
    return as_numpy(value).tolist() if hasattr(value, "shape") else value


Damage = Callable[[Path], None]


def settings(**changes: Any) -> Damage:
    """Change keys of config.json; `...` removes a key."""
    return lambda folder: edit_json(folder / CONFIG, **changes)


def tensors(changes: Mapping[str, Any]) -> Damage:
    """Change tensors of model.safetensors; `None` removes one."""

    def change(folder: Path) -> None:
        stored = {name: array.copy() for name, array in load_file(folder / ARRAYS).items()} | changes
        save_file({name: array for name, array in stored.items() if array is not None}, folder / ARRAYS)

    return change


def refused(load: Callable[[Path], Any], folder: Path, damage: Damage, kind: type[Exception] = ValueError) -> str:
    """Return what `load` says of a damaged folder, in one sentence after the folder's own path."""
    damage(folder)
    before = contents(folder)
    with pytest.raises(kind) as error:
        load(folder)
    message, begin = str(error.value), f"{folder}{os.sep}"
    assert contents(folder) == before
    assert message.startswith(begin) and "expected" in message and "\n" not in message
    return message.removeprefix(begin)
