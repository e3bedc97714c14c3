"""A run of any trainer survives being killed, a full disk and a second attempt; nothing else resumes it."""

from __future__ import annotations

import os
import re
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from folders import contents, tiny_config, write_checkpoint
from killed import kill_at_random
from pass_sampling.gpu import LookAhead, SamplingConfig, load_model
from pass_sampling.gpu.training.resume import Progress, partial_file
from pass_sampling.reference.checkpoint.folder import replace_file
from training import (
    NUM_STEPS,
    ROOT,
    TEXTS,
    TOKENS,
    TRAINERS,
    checkpoint,
    interrupt,
    model,
    on_trainers,
    pretrained,
    saving_every_step,
    steps_of,
)

STATE = "out.partial.safetensors"
OF_BOTH_KINDS = pytest.mark.parametrize("trainer", ["adapter and head", "base model"])
WEIGHTS = "model.safetensors"


@cache
def uninterrupted(trainer: str) -> bytes:
    folder = Path(ROOT.name) / "uninterrupted" / trainer
    TRAINERS[trainer](folder)
    return (folder / WEIGHTS).read_bytes()


@on_trainers
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(trainer: str, tmp_path: Path) -> None:
    for name, changes in (("same", {}), ("other", {"seed": 7})):
        TRAINERS[trainer](tmp_path / name, **changes)
        assert ((tmp_path / name / WEIGHTS).read_bytes() == uninterrupted(trainer)) == (name == "same")


@on_trainers
def test_a_run_that_was_interrupted_at_every_step_goes_on_to_the_same_weights(trainer: str, tmp_path: Path) -> None:
    """Reported comes before saved, so an interruption at a step costs that step."""
    output = tmp_path / "out"
    for step in (2, 3, 3, 4):
        interrupt(trainer, output, step)
        assert os.listdir(tmp_path) == [STATE]
    assert steps_of(trainer, output) == [NUM_STEPS]
    assert (output / WEIGHTS).read_bytes() == uninterrupted(trainer)
    assert os.listdir(tmp_path) == ["out"]


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from training import TRAINERS, saving_every_step
with saving_every_step():
    TRAINERS[sys.argv[2]](Path(sys.argv[3]), lambda news: "step" in news and print(news, flush=True))
"""


@OF_BOTH_KINDS
def test_a_run_that_was_killed_goes_on_to_the_same_weights(trainer: str, tmp_path: Path) -> None:
    output = tmp_path / "out"
    kill_at_random(KILLED, Path(__file__).parents[1] / "support", trainer, output, most=NUM_STEPS)
    if not output.exists():  # else it was killed just after the end
        TRAINERS[trainer](output)
        left = [name for name in os.listdir(tmp_path) if not re.fullmatch(r"\.out\.[0-9a-f]{16}\.new", name)]
        assert left == ["out"], "something is left of the killed run, but for what saving.py warns of"
    assert (output / WEIGHTS).read_bytes() == uninterrupted(trainer)


def another_teacher() -> Path:
    """Return a teacher with the same tokenizer, also the one that is trained where nobody teaches."""
    config, folder = tiny_config(vocab_size=300, max_position_embeddings=16), Path(ROOT.name) / "another"
    write_checkpoint(folder, config, eos_token_id=0, bos_token_id=0, dtype="bfloat16")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((pretrained().folder / name).read_bytes())
    return folder


ANOTHER_RUN: list[tuple[str, dict[str, Any], dict[str, Any]]] = [  # the trainer, and how two runs were called
    *[
        ("vectors", {}, {name: value})
        for name, value in {
            "num_steps": 7,
            "seed": 1,
            "loss": "cross-entropy",
            "sampling": SamplingConfig(0.6),
            "adapter_rank": 1,
            "head_width": 1,
            "depth_decay": 0.5,
            "training": TOKENS[:200][::-1].copy(),
            "held_out": TOKENS[200:][::-1].copy(),
            "model": partial(model, 1),
        }.items()
    ],
    ("vectors", {}, {"model": lambda: load_model(checkpoint(), "float64")}),
    ("base model", {}, {"num_steps": 7}),
    ("base model", {}, {"seed": 1}),
    ("base model", {}, {"learning_rate": 0.2}),
    ("base model", {}, {"texts": {name: text.replace("alpha", "omega") for name, text in TEXTS.items()}}),
    ("student", {}, {"teacher": None}),
    ("student", {}, {"teacher": another_teacher}),
    ("student", {"teacher": another_teacher}, {"teacher": None}),
    ("student", {"teacher": None}, {}),
]


@pytest.mark.parametrize(("trainer", "first", "then"), ANOTHER_RUN)
def test_a_run_does_not_go_on_as_another_one(trainer: str, first: Any, then: Any, tmp_path: Path) -> None:
    """A value that must be made is a function; all teachers have the same tokenizer, so only weights differ."""
    first, then = (
        {name: value() if callable(value) else value for name, value in each.items()} for each in (first, then)
    )
    interrupt(trainer, tmp_path / "out", 2, **first)
    before = contents(tmp_path)
    message = r"^\S+ is an unfinished run with other settings, another model or other text, expected the same ones"
    with pytest.raises(ValueError, match=message):
        TRAINERS[trainer](tmp_path / "out", **then)
    assert contents(tmp_path) == before


@OF_BOTH_KINDS
@pytest.mark.parametrize("damage", [b"", b"{}", b"\xff" * 100, "half"])
def test_a_damaged_state_is_refused_by_name(damage: Any, trainer: str, tmp_path: Path) -> None:
    interrupt(trainer, tmp_path / "out", 2)
    content = (tmp_path / STATE).read_bytes()
    (tmp_path / STATE).write_bytes(content[: len(content) // 2] if damage == "half" else damage)
    with pytest.raises(ValueError, match=r"out\.partial\.safetensors is damaged or half-written"):
        TRAINERS[trainer](tmp_path / "out")


# --- A disk that is full, and a place that is taken ---


def fill_disk(patch: pytest.MonkeyPatch, target: str, since: int) -> None:
    """Let the disk be full when a path is put in its place for the n-th time."""
    real, times = os.replace, [0]

    def full(source: Any, to: Any) -> None:
        times[0] += Path(to).name == target
        if Path(to).name == target and times[0] >= since:
            raise OSError(28, "No space left on device")
        real(source, to)

    patch.setattr(os, "replace", full)


@OF_BOTH_KINDS
@pytest.mark.parametrize("target, since, done", [(STATE, 1, 0), (STATE, 3, 2), (STATE, 4, 3), ("out", 1, 4)])
def test_a_full_disk_leaves_nothing_half_written_and_the_run_goes_on_afterwards(
    target: str, since: int, done: int, trainer: str, tmp_path: Path
) -> None:
    with saving_every_step(), pytest.MonkeyPatch.context() as patch:
        fill_disk(patch, target, since)
        with pytest.raises(OSError, match="No space left"):
            TRAINERS[trainer](tmp_path / "out")
    assert os.listdir(tmp_path) == ([STATE] if done else [])
    assert steps_of(trainer, tmp_path / "out") == list(range(done + 1, NUM_STEPS + 1))
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == uninterrupted(trainer)
    assert os.listdir(tmp_path) == ["out"]


@OF_BOTH_KINDS
def test_the_last_step_is_saved_before_the_result_is(trainer: str, tmp_path: Path) -> None:
    """However long the state was not due: what remains is measured and written again, not trained again."""
    with pytest.MonkeyPatch.context() as patch:
        fill_disk(patch, "out", 1)
        with pytest.raises(OSError, match="No space left"):
            TRAINERS[trainer](tmp_path / "out")
    assert steps_of(trainer, tmp_path / "out") == []


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_file(tmp_path / "folder" / "file", b"old")

    def half(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", half)
        with pytest.raises(OSError, match="No space left"):
            replace_file(tmp_path / "folder" / "file", b"new")
    assert {path.name: path.read_bytes() for path in (tmp_path / "folder").iterdir()} == {"file": b"old"}


@OF_BOTH_KINDS
@pytest.mark.parametrize("taken", ["file", "folder", "look-ahead folder"])
def test_an_output_that_is_taken_is_refused_and_not_touched(taken: str, trainer: str, tmp_path: Path) -> None:
    output = tmp_path / "out"
    if taken == "file":
        output.write_text("mine")
    elif taken == "folder":
        output.mkdir()
        (output / "notes.txt").write_text("mine")
    else:
        LookAhead.random(2, 24, 0).save(output)
    before, what = contents(tmp_path), "model" if trainer == "base model" else "look-ahead vectors"
    with pytest.raises(ValueError, match=rf"out is there already, expected a new path for the {what}$"):
        TRAINERS[trainer](output)
    assert contents(tmp_path) == before


# --- The state of a run ---

OPTIMIZERS = {
    "AdamW": partial(torch.optim.AdamW, betas=(0.9, 0.98), weight_decay=0.0),
    "AdamW, fused": partial(torch.optim.AdamW, fused=True),
    "AdamW, amsgrad": partial(torch.optim.AdamW, amsgrad=True),
    "Muon": partial(torch.optim.Muon, adjust_lr_fn="match_rms_adamw"),
    "SGD": torch.optim.SGD,
    "SGD, momentum": partial(torch.optim.SGD, momentum=0.9, nesterov=True),
    "RMSprop": partial(torch.optim.RMSprop, momentum=0.5, centered=True),
    "NAdam": torch.optim.NAdam,
    "Adagrad": torch.optim.Adagrad,
}


class Run:
    """Some parameters, optimizers that share them out, and steps that follow from their number."""

    def __init__(self, names: list[str], shapes: list[tuple[int, int]], seed: int):
        generator = torch.Generator().manual_seed(seed)
        self.parameters = {
            f"layer.{i} weight": torch.randn(shape, generator=generator, requires_grad=True)
            for i, shape in enumerate(shapes)
        }
        values = list(self.parameters.values())
        shares = [values[i :: len(names)] for i in range(len(names))]
        self.optimizers = [OPTIMIZERS[name](share, lr=0.01) for name, share in zip(names, shares, strict=True)]

    def step(self, number: int) -> None:
        generator = torch.Generator().manual_seed(number)
        for parameter in self.parameters.values():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        for optimizer in self.optimizers:
            optimizer.step()

    def bits(self) -> list[bytes]:
        return [parameter.detach().numpy().tobytes() for parameter in self.parameters.values()]


@st.composite
def runs(draw: Any) -> partial[Run]:
    names = draw(st.lists(st.sampled_from(sorted(OPTIMIZERS)), min_size=1, max_size=3))
    sizes = st.integers(1, 5)
    return partial(Run, names, draw(st.lists(st.tuples(sizes, sizes), min_size=len(names), max_size=5)))


notes_of_any_kind = st.dictionaries(
    st.text(), st.floats(allow_nan=False) | st.text() | st.lists(st.lists(st.integers())), max_size=3
)


@given(make=runs(), done=st.integers(0, 3), more=st.integers(1, 3), notes=notes_of_any_kind)
def test_the_state_of_any_run_comes_back_bit_for_bit(
    make: Any, done: int, more: int, notes: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("state") / "run.partial.safetensors"
    first, second = make(seed=0), make(seed=1)
    for step in range(done):
        first.step(step)
    Progress(file, "digest", first.parameters, first.optimizers).save(done, notes, now=True)
    progress = Progress(file, "digest", second.parameters, second.optimizers)
    assert progress.restore() == (done, notes)
    for step in range(done, done + more):
        assert second.bits() == first.bits()
        first.step(step)
        second.step(step)
    assert second.bits() == first.bits()
    progress.finish()
    assert progress.restore() == (0, {})


def test_the_state_is_written_when_it_is_due_or_must_be_now_and_removed_at_the_end(tmp_path: Path) -> None:
    progress = Progress(partial_file(tmp_path / "run"), "digest", {}, [], every=3600.0)
    progress.save(1, {})
    assert not progress.file.exists()
    progress.save(2, {}, now=True)
    progress.save(3, {})
    assert progress.restore() == (2, {})
    (tmp_path / ".run.partial.safetensors.123.new").write_bytes(b"half")  # what a killed run leaves
    progress.finish()
    assert os.listdir(tmp_path) == []
