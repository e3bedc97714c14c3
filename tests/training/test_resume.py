"""A run of any trainer survives being killed, a full disk and a second attempt; nothing else resumes it."""

import os
import re
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest

from folders import contents, tiny_config, write_checkpoint
from killed import kill_at_random
from pass_sampling.gpu import LookAhead, SamplingConfig, load_model
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
        assert [name for name in os.listdir(tmp_path) if not name.endswith(".states")] == [STATE]
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
@pytest.mark.parametrize("times", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_a_run_that_was_killed_goes_on_to_the_same_weights(times: int, trainer: str, tmp_path: Path) -> None:
    """Within a step, while its state is saved or while the result is: every step is saved as soon as it is printed."""
    for home in (tmp_path / str(number) for number in range(times)):
        output = home / "out"
        kill_at_random(KILLED, Path(__file__).parents[1] / "support", trainer, output, most=NUM_STEPS)
        if not output.exists():  # else it was killed just after the end
            TRAINERS[trainer](output)
            left = [name for name in os.listdir(home) if not re.fullmatch(r"\.out\.[0-9a-f]{16}\.new", name)]
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
            "training": TOKENS[:200][::-1].copy(),
            "held_out": TOKENS[200:][::-1].copy(),
            "model": partial(model, 1),
        }.items()
    ],
    ("vectors", {}, {"model": lambda: load_model(checkpoint(), "float64")}),
    ("base model", {}, {"num_steps": 7}),
    ("base model", {}, {"seed": 1}),
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
def test_a_full_disk_leaves_nothing_half_written_and_the_run_goes_on_afterwards(target, since, done, trainer, tmp_path):
    with saving_every_step(), pytest.MonkeyPatch.context() as patch:
        fill_disk(patch, target, since)
        with pytest.raises(OSError, match="No space left"):
            TRAINERS[trainer](tmp_path / "out")
    assert [name for name in os.listdir(tmp_path) if not name.endswith(".states")] == ([STATE] if done else [])
    assert steps_of(trainer, tmp_path / "out") == list(range(done + 1, NUM_STEPS + 1))
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == uninterrupted(trainer)
    assert os.listdir(tmp_path) == ["out"]


@OF_BOTH_KINDS
@pytest.mark.parametrize("free", [0, 1000, 10_000])
def test_a_disk_that_is_full_in_the_middle_of_a_file_leaves_the_last_state(free, trainer, tmp_path):
    """Files may have so many bytes, which the system enforces: a state has more."""
    resource = pytest.importorskip("resource")  # not on Windows
    interrupt(trainer, tmp_path / "out", 3)
    before, limits = contents(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    assert len(before[STATE][1]) > free
    resource.setrlimit(resource.RLIMIT_FSIZE, (free, limits[1]))
    try:
        with saving_every_step(), pytest.raises(OSError, match="File too large"):
            TRAINERS[trainer](tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert contents(tmp_path) == before
    TRAINERS[trainer](tmp_path / "out")
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == uninterrupted(trainer)


@OF_BOTH_KINDS
def test_the_last_step_is_saved_before_the_result_is(trainer: str, tmp_path: Path) -> None:
    """However long the state was not due: what remains is measured and written again, not trained again."""
    with pytest.MonkeyPatch.context() as patch:
        fill_disk(patch, "out", 1)
        with pytest.raises(OSError, match="No space left"):
            TRAINERS[trainer](tmp_path / "out")
    assert steps_of(trainer, tmp_path / "out") == []


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
    with pytest.raises(ValueError, match=rf"out already exists, expected a new path for the {what}$"):
        TRAINERS[trainer](output)
    assert contents(tmp_path) == before
