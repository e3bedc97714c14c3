"""The trainers at toy size, each as one function, with the text they learn from; and ways to interrupt them."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from folders import tiny_config, write_checkpoint
from lookaheads import PARTS
from pass_sampling.gpu import SamplingConfig, Transformer, load_model
from pass_sampling.gpu.training.pretrain import PretrainConfig, pretrain
from pass_sampling.gpu.training.train import TrainConfig, train

ROOT = tempfile.TemporaryDirectory(prefix="pass-sampling-training-", ignore_cleanup_errors=True)
WORDS = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho sigma tau".split()

# A base model, and a smaller one that learns from it.
TINY = PretrainConfig(
    vocab_size=300,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    context=16,
    num_steps=60,
    batch_size=4,
    learning_rate=0.02,
)
STUDENT = replace(TINY, hidden_size=8, intermediate_size=12, num_attention_heads=1, seed=1)

# Look-ahead vectors, and what is trained with them, for a random model of 23 tokens.
VOCAB = 23
TOKENS = np.tile(np.arange(VOCAB), 12)  # the last token decides the next one
LOOK_AHEAD = TrainConfig(2, SamplingConfig(0.5), num_steps=4, batch_size=2, context=8, num_anchors=3)
NUM_STEPS = LOOK_AHEAD.num_steps  # of every trainer below


def text(number: int) -> str:
    """Return a small text with structure, which names itself and has nothing in common with others."""
    words = np.random.default_rng(number).choice(WORDS, size=60)
    lines = [f"{one} = {other}({number}, 'é')" for one, other in zip(words[::2], words[1::2], strict=True)]
    return f"# text {number} of many\n" + "\n".join(lines) + "\n"


TEXTS = {f"notes/text_{i:02}.py": text(i) for i in range(40)}


class Pretrained(NamedTuple):
    """A base model that was trained to the end."""

    folder: Path
    record: dict[str, Any]
    news: list[dict[str, Any]]


@cache
def pretrained() -> Pretrained:
    """Return the trained base model of `TINY`, made once."""
    folder, news = Path(ROOT.name) / "pretrained" / "tiny", list[dict[str, Any]]()
    return Pretrained(folder, pretrain(folder, TEXTS, TINY, report=news.append), news)


@cache
def checkpoint(seed: int = 0) -> Path:
    """Return the folder of a random model."""
    return write_checkpoint(Path(ROOT.name) / f"seed {seed}" / "tiny", tiny_config(), seed=seed)


@cache
def model(seed: int = 0) -> Transformer:
    """Return the random model of that folder."""
    return load_model(checkpoint(seed))


def tensors(model: Transformer) -> list[torch.Tensor]:
    """Return everything that a model consists of."""
    layers = [value for layer in model.weights.layers for value in vars(layer).values()]
    others = [value for name, value in vars(model.weights).items() if name != "layers"]
    return [value for value in [*layers, *others, model._frequencies] if isinstance(value, torch.Tensor)]


def settings_for(parts: str, config: TrainConfig = LOOK_AHEAD, **changes: Any) -> TrainConfig:
    """Return settings that train one of `PARTS`."""
    rank, width, alone = PARTS[parts]
    block = parts == "block heads"
    return replace(config, adapter_rank=rank, head_width=width, head_alone=alone, block_heads=block, **changes)


def _call(trainer: Callable[..., Any], config: Any, arguments: dict[str, Any], changes: dict[str, Any]) -> Any:
    """Call a trainer; each of the changes is one of its arguments or a setting."""
    settings = {name: value for name, value in changes.items() if name not in arguments}
    arguments = {name: changes.get(name, value) for name, value in arguments.items()}
    return trainer(**arguments, config=replace(config, **settings))


def _train_parts(parts: str, output: Path, report: Any = None, **changes: Any) -> Any:
    given = {"model": model(), "training": TOKENS[:200], "held_out": TOKENS[200:]}
    return _call(train, settings_for(parts), given | {"output": output, "report": report}, changes)


def _train_model(output: Path, report: Any = None, **changes: Any) -> Any:
    given = {"texts": TEXTS, "held_out": None, "teacher": None, "output": output, "report": report}
    return _call(pretrain, replace(TINY, num_steps=NUM_STEPS), given, changes)


def _train_student(output: Path, report: Any = None, **changes: Any) -> Any:
    given = {"texts": TEXTS, "held_out": None, "teacher": pretrained().folder, "output": output, "report": report}
    return _call(pretrain, replace(STUDENT, num_steps=NUM_STEPS), given, changes)


# Called with an output, perhaps with `report`, and with other arguments and settings by name.
TRAINERS: dict[str, Callable[..., Any]] = {parts: partial(_train_parts, parts) for parts in PARTS}
TRAINERS |= {"base model": _train_model, "student": _train_student}
on_trainers = pytest.mark.parametrize("trainer", TRAINERS)


class Interrupted(BaseException):
    """Stands for what ends a run between two steps."""


@contextmanager
def saving_every_step() -> Iterator[None]:
    """Save the state of a run after every step instead of every 20 seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pass_sampling.gpu.training.resume.EVERY", 0.0)
        yield


def interrupt(trainer: str, output: Path, step: int, **changes: Any) -> None:
    """Run until a step is reported; the state of the step before it is saved."""

    def report(news: dict[str, Any]) -> None:
        if news.get("step") == step:
            raise Interrupted

    with saving_every_step(), pytest.raises(Interrupted):
        TRAINERS[trainer](output, report, **changes)


def steps_of(trainer: str, output: Path, **changes: Any) -> list[int]:
    """Run to the end and return the steps that were trained."""
    news: list[dict[str, Any]] = []
    TRAINERS[trainer](output, news.append, **changes)
    return [part["step"] for part in news if "step" in part]
