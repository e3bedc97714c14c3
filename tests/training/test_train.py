"""Training look-ahead vectors: it helps, it changes nothing else, and it survives being killed."""

from __future__ import annotations

import builtins
import errno
import json
import os
import re
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from folders import both_packages, contents, module, tiny_config, write_checkpoint
from killed import kill_at_random
from pass_sampling.gpu import SamplingConfig, Transformer, load_model
from pass_sampling.gpu.drafters.ngram import NgramModel
from pass_sampling.gpu.drafters.prompt_lookup import PromptLookup
from pass_sampling.gpu.training.acceptance import (
    LOSSES,
    AnchoredRows,
    anchored_rows,
    drafter_acceptance,
    expected_acceptance,
    fixed_token_vectors,
    mean_loss,
    perplexity,
)
from pass_sampling.gpu.training.resume import Progress, partial_file
from pass_sampling.gpu.training.text import own_text
from pass_sampling.gpu.training.train import TrainConfig, schedule, train
from shapes import checked, functions_of, signature

VOCAB = 23
TEXT = np.tile(np.arange(VOCAB), 12)  # what comes next follows from the last token
TRAINING, HELD_OUT = TEXT[:200], TEXT[200:]
SHORT = TrainConfig(2, SamplingConfig(0.5), num_steps=6, batch_size=2, context=8, num_anchors=3, learning_rate=0.05)
LONG = replace(SHORT, num_steps=60, context=16, num_anchors=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("models") / "tiny", tiny_config())


@pytest.fixture(scope="module")
def model(folder: Path) -> Transformer:
    return load_model(folder)


@pytest.fixture
def saving_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Save after every step instead of every 20 seconds."""
    monkeypatch.setattr(module("gpu", "training.train"), "Progress", partial(Progress, every=0.0))


@pytest.fixture(scope="module")
def uninterrupted(model: Transformer, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return bits(train(model, TRAINING, HELD_OUT, tmp_path_factory.mktemp("runs") / "vectors", SHORT))


def bits(lookahead: Any) -> bytes:
    return lookahead.vectors.numpy().tobytes()


def tensors(model: Transformer) -> list[torch.Tensor]:
    """Everything that a model consists of."""
    layers = [value for layer in model.weights.layers for value in vars(layer).values()]
    others = [value for name, value in vars(model.weights).items() if name != "layers"]
    return [value for value in [*layers, *others, model._frequencies] if isinstance(value, torch.Tensor)]


# --- What training achieves, and what it leaves alone ---


def test_trained_vectors_are_accepted_more_often_than_the_fixed_token(model: Transformer, tmp_path: Path) -> None:
    news: list[dict[str, Any]] = []
    before = [tensor.clone() for tensor in tensors(model)]
    lookahead = train(model, TRAINING, HELD_OUT, tmp_path / "vectors", LONG, news.append)
    outcome = lookahead.training["held_out"]
    pairs = list(zip(outcome["acceptance"], outcome["fixed_token_acceptance"], strict=True))
    assert len(pairs) == 2 and all(trained > fixed + 0.03 for trained, fixed in pairs)
    assert len(before) > 10 and all(map(torch.equal, before, tensors(model))), "the frozen model has changed"
    assert news[0].keys() == {"first_step", "num_steps", "seconds_per_step", "memory"}
    assert [part["step"] for part in news[1:-1]] == list(range(1, 61))
    assert news[-1] == outcome


@pytest.mark.parametrize("loss", LOSSES)
def test_each_loss_falls_below_that_of_the_fixed_token(loss: str, model: Transformer, tmp_path: Path) -> None:
    lookahead = train(model, TRAINING, HELD_OUT, tmp_path / "vectors", replace(LONG, loss=loss))
    tokens, anchors = torch.from_numpy(HELD_OUT[None]), torch.arange(len(HELD_OUT) - 3)
    values = [
        LOSSES[loss](anchored_rows(model, vectors, tokens, anchors), 0.5).mean()
        for vectors in (lookahead.vectors, fixed_token_vectors(model, 2))
    ]
    assert values[0] < values[1]


@given(seed=st.integers(0, 2**32), temperature=st.sampled_from([0.25, 1.0, 1.5]))
def test_the_losses_are_their_equations(seed: int, temperature: float) -> None:
    """In float32: logits of order 10 are wrong by 2^-24 of that, and so are their logarithms."""
    generator = np.random.default_rng(seed)
    draft, target = 3 * generator.standard_normal((2, 2, 3, 2, 5))
    tokens = generator.integers(5, size=(2, 3, 2))
    rows = AnchoredRows(torch.from_numpy(draft), torch.from_numpy(target), torch.from_numpy(tokens))

    def log_probs(logits: np.ndarray) -> np.ndarray:
        return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))

    target_log, draft_log = log_probs(target / temperature), log_probs(draft / temperature)
    expected = {
        "kl": (np.exp(target_log) * (target_log - draft_log)).sum(axis=-1),
        "total-variation": 1 - np.minimum(np.exp(target_log), np.exp(draft_log)).sum(axis=-1),
        "cross-entropy": -np.take_along_axis(log_probs(draft), tokens[..., None], axis=-1)[..., 0],
    }
    assert expected.keys() == LOSSES.keys()
    for name, values in expected.items():
        assert LOSSES[name](rows, temperature).numpy() == pytest.approx(values, abs=1e-4)
    same = rows._replace(draft_logits=rows.target_logits)
    for name in ("kl", "total-variation"):
        assert float(LOSSES[name](same, temperature).abs().max()) < 1e-6


@given(seed=st.integers(0, 2**32), decay=st.sampled_from([1.0, 0.9, 0.25]) | st.floats(1e-3, 1))
def test_a_deeper_draft_weighs_less(seed: int, decay: float) -> None:
    values = np.random.default_rng(seed).standard_normal((2, 3, 5))
    expected = np.average(values.mean(axis=(0, 1)), weights=decay ** np.arange(5))
    assert float(mean_loss(torch.from_numpy(values), decay)) == pytest.approx(expected, abs=1e-6)
    if decay == 1:
        assert float(mean_loss(torch.from_numpy(values), decay)) == pytest.approx(values.mean(), abs=1e-6)


@given(num_steps=st.integers(1, 300), warmup=st.sampled_from([0.0, 1.0]) | st.floats(0, 1))
def test_the_learning_rate_rises_then_falls_and_stays_positive(num_steps: int, warmup: float) -> None:
    config = replace(SHORT, num_steps=num_steps, warmup=warmup)
    rates = [schedule(step, config) for step in range(num_steps)]
    assert all(0 < rate <= 1 for rate in rates)
    top = rates.index(max(rates))
    assert rates == sorted(rates[:top]) + sorted(rates[top:], reverse=True)


def test_the_same_seed_gives_the_same_vectors_and_another_seed_others(
    model: Transformer, uninterrupted: bytes, tmp_path: Path
) -> None:
    runs = [train(model, TRAINING, HELD_OUT, tmp_path / str(i), replace(SHORT, seed=i)) for i in range(2)]
    assert bits(runs[0]) == uninterrupted != bits(runs[1])


@both_packages
def test_the_folder_opens_in_both_packages_and_fits_the_model(
    package: str, folder: Path, model: Transformer, tmp_path: Path
) -> None:
    saved = train(model, TRAINING, HELD_OUT, tmp_path / "vectors", SHORT)
    loaded = module(package, "lookahead.vectors").LookAhead.load(tmp_path / "vectors")
    loaded.check(module(package, "checkpoint.load").load_model(folder))
    assert np.asarray(loaded.vectors).tobytes() == bits(saved)
    assert (loaded.base_model, loaded.fingerprint) == ("tiny", model.fingerprint)
    assert asdict(loaded.sampling) == asdict(SHORT.sampling)
    assert loaded.training == json.loads(json.dumps(saved.training, allow_nan=False)) == saved.training
    assert loaded.training["settings"]["num_steps"] == 6 and loaded.training["training_tokens"] == 200
    assert os.listdir(tmp_path) == ["vectors"]


def test_every_array_has_the_shape_that_its_comment_says(model: Transformer, tmp_path: Path) -> None:
    names = ("acceptance", "text")
    homes = [module("gpu", "training.train"), *(module("gpu", f"training.{name}") for name in names)]
    functions = [function for home in homes for function in functions_of(home)]
    commented = [function for function in functions if signature(function).comments]
    with checked(commented) as calls:
        for loss in LOSSES:
            train(model, TRAINING, HELD_OUT, tmp_path / loss, replace(SHORT, loss=loss, adapter_rank=3, head_width=5))
        expected_acceptance(model, torch.zeros(2, 24), HELD_OUT[None], SHORT.sampling)
        drafter_acceptance(model, PromptLookup(VOCAB), HELD_OUT[None], [SHORT.sampling])
        perplexity(NgramModel(torch.ones(VOCAB)), HELD_OUT[None], torch.device("cpu"))
        own_text(model, 5, 3, SHORT.sampling, 0)
    never = {f"{function.__module__}.{function.__qualname__}" for function in commented} - calls.keys()
    assert len(commented) > 12 and never == set()


# --- A run that is interrupted ---


class Interrupted(BaseException):
    """Stands for what ends a run between two steps."""


def interrupted_run(model: Transformer, output: Path, step: int, config: TrainConfig = SHORT) -> None:
    """Run until some steps are reported."""

    def report(news: dict[str, Any]) -> None:
        if news.get("step") == step:
            raise Interrupted

    with pytest.raises(Interrupted):
        train(model, TRAINING, HELD_OUT, output, config, report)


@settings(max_examples=15)
@given(steps=st.lists(st.integers(2, 6), max_size=4))
def test_a_run_that_was_interrupted_anywhere_goes_on_to_the_same_bits(
    steps: list[int], model: Transformer, uninterrupted: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Reported comes before saved, so an interruption at a step costs that step."""
    output = tmp_path_factory.mktemp("runs") / "vectors"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module("gpu", "training.train"), "Progress", partial(Progress, every=0.0))
        for step in sorted(steps):
            interrupted_run(model, output, step)
            assert os.listdir(output.parent) == ["vectors.partial.safetensors"]
        firsts: list[int] = []
        found = train(model, TRAINING, HELD_OUT, output, SHORT, lambda news: firsts.append(news.get("first_step", -1)))
    assert firsts[0] == max(steps, default=1) - 1
    assert bits(found) == uninterrupted
    assert os.listdir(output.parent) == ["vectors"]


KILLED = """
import importlib, sys
from dataclasses import replace
from functools import partial
import numpy as np
from pass_sampling.gpu import SamplingConfig, load_model
home = importlib.import_module("pass_sampling.gpu.training.train")
home.Progress = partial(home.Progress, every=0.0)
text = np.tile(np.arange(23), 12)
config = home.TrainConfig(
    2, SamplingConfig(0.5), num_steps=6, batch_size=2, context=8, num_anchors=3, learning_rate=0.05
)
home.train(load_model(sys.argv[1]), text[:200], text[200:], sys.argv[2], config, lambda news: print(news, flush=True))
"""


def test_a_run_that_was_killed_goes_on_to_the_same_bits(
    folder: Path, model: Transformer, uninterrupted: bytes, tmp_path: Path
) -> None:
    output = tmp_path / "vectors"
    kill_at_random(KILLED, folder, output, most=7)
    if output.exists():  # killed just after the end
        assert bits(module("gpu", "lookahead.vectors").LookAhead.load(output)) == uninterrupted
        return
    assert bits(train(model, TRAINING, HELD_OUT, output, SHORT)) == uninterrupted
    left = [name for name in os.listdir(tmp_path) if not re.fullmatch(r"\.vectors\.[0-9a-f]{16}\.new", name)]
    assert left == ["vectors"], "something is left of the killed run, but for what saving.py warns of"


@pytest.mark.parametrize(
    "what",
    [
        *("num_steps", "seed", "loss", "sampling", "adapter_rank", "head_width", "depth_decay", "loss_temperature"),
        *("training", "held_out", "model", "a model from no folder", "dtype"),
    ],
)
def test_a_run_does_not_go_on_as_another_one(
    what: str, folder: Path, model: Transformer, saving_often: None, tmp_path: Path
) -> None:
    output, config, texts, other = tmp_path / "vectors", SHORT, [TRAINING, HELD_OUT], model
    if what == "a model from no folder":
        model, other = (Transformer(model.config, load_model(folder).weights) for _ in range(2))
        other.weights.embedding[0, 0] += 1
    interrupted_run(model, output, 4)
    before = contents(tmp_path)
    changes = {"num_steps": 7, "seed": 1, "loss": "cross-entropy", "sampling": SamplingConfig(0.6)}
    changes |= {"adapter_rank": 1, "head_width": 1, "depth_decay": 0.5, "loss_temperature": 0.5}
    if what in changes:
        config = replace(SHORT, **{what: changes[what]})
    elif what == "model":
        other = load_model(write_checkpoint(tmp_path.parent / "other", tiny_config(), seed=1))
    elif what == "dtype":
        other = load_model(folder, "float64")
    elif what in ("training", "held_out"):
        texts[what == "held_out"] = texts[what == "held_out"][::-1].copy()
    with pytest.raises(
        ValueError, match=r"^\S+ is an unfinished run with other settings, another model or .+ expected"
    ):
        train(other, *texts, output, config)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("damage", [b"", b"{}", b"\xff" * 100, "half"])
def test_a_damaged_state_is_refused_by_name(
    damage: Any, model: Transformer, saving_often: None, tmp_path: Path
) -> None:
    interrupted_run(model, tmp_path / "vectors", 4)
    file = partial_file(tmp_path / "vectors")
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2] if damage == "half" else damage)
    with pytest.raises(ValueError, match=r"vectors\.partial\.safetensors is damaged or half-written"):
        train(model, TRAINING, HELD_OUT, tmp_path / "vectors", SHORT)


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
    shapes = draw(st.lists(st.tuples(sizes, sizes), min_size=len(names), max_size=5))
    return partial(Run, names, shapes)


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


def test_the_end_of_a_run_removes_what_a_killed_one_had_half_written(tmp_path: Path) -> None:
    progress = Progress(tmp_path / "run.partial.safetensors", "digest", {}, [])
    progress.save(1, {}, now=True)
    (tmp_path / ".run.partial.safetensors.new").write_bytes(b"half")
    progress.finish()
    assert os.listdir(tmp_path) == []


def test_the_state_is_written_when_it_is_due_or_must_be_now(tmp_path: Path) -> None:
    progress = Progress(tmp_path / "run.partial.safetensors", "digest", {}, [], every=3600.0)
    progress.save(1, {})
    assert not progress.file.exists()
    progress.save(2, {}, now=True)
    progress.save(3, {})
    assert progress.restore() == (2, {})


# --- A disk that is full ---


def full_disk(patch: pytest.MonkeyPatch, how: str, where: str, since: int) -> None:
    """Let the disk be full: for the state from its n-th time on, or for the result."""
    times = [0]

    def is_full(path: Any) -> bool:
        name = str(path)
        state = "partial.safetensors" in name
        counted = how == "rename" or name.endswith((".new", "config.json", "model.safetensors"))
        if state != (where == "state") or "vectors" not in name or not counted:
            return False
        times[0] += 1
        return times[0] >= since

    real_open, real_replace = builtins.open, os.replace

    class Half:
        """A file that takes half of what is written."""

        def __init__(self, stream: Any):
            self.stream = stream

        def __enter__(self) -> Half:
            return self

        def __exit__(self, *error: Any) -> None:
            self.stream.close()

        def write(self, content: bytes) -> None:
            self.stream.write(content[: len(content) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")

    def open_(path: Any, mode: str = "r", *rest: Any, **options: Any) -> Any:
        stream = real_open(path, mode, *rest, **options)
        return Half(stream) if how == "write" and mode == "wb" and is_full(path) else stream

    def replace_(source: Any, target: Any) -> None:
        if how == "rename" and is_full(target):
            raise OSError(errno.ENOSPC, "No space left on device")
        real_replace(source, target)

    patch.setattr(builtins, "open", open_)
    patch.setattr(os, "replace", replace_)


@pytest.mark.parametrize("how", ["write", "rename"])
@pytest.mark.parametrize("where, since, first", [("state", 1, 0), ("state", 3, 2), ("state", 6, 5), ("result", 1, 6)])
def test_a_full_disk_leaves_nothing_half_written_and_the_run_goes_on_afterwards(
    how: str, where: str, since: int, first: int, model: Transformer, uninterrupted: bytes, saving_often: None,
    tmp_path: Path,
) -> None:  # fmt: skip
    output = tmp_path / "vectors"
    with pytest.MonkeyPatch.context() as patch:
        full_disk(patch, how, where, since)
        with pytest.raises(OSError, match="No space left"):
            train(model, TRAINING, HELD_OUT, output, SHORT)
    assert os.listdir(tmp_path) == ([partial_file(output).name] if first else [])
    news: list[dict[str, Any]] = []
    assert bits(train(model, TRAINING, HELD_OUT, output, SHORT, news.append)) == uninterrupted
    assert news[0]["first_step"] == first


def test_the_last_step_is_saved_before_the_result_is(model: Transformer, tmp_path: Path) -> None:
    """However long the state was not due: what remains is measured and written again, not trained again."""
    with pytest.MonkeyPatch.context() as patch:
        full_disk(patch, "rename", "result", 1)
        with pytest.raises(OSError, match="No space left"):
            train(model, TRAINING, HELD_OUT, tmp_path / "vectors", SHORT)
    news: list[dict[str, Any]] = []
    train(model, TRAINING, HELD_OUT, tmp_path / "vectors", SHORT, news.append)
    assert news[0]["first_step"] == 6 and len(news) == 2


# --- What is refused ---


@pytest.mark.parametrize("taken", ["file", "folder", "look-ahead folder"])
def test_an_output_that_is_taken_is_refused_and_not_touched(taken: str, model: Transformer, tmp_path: Path) -> None:
    output = tmp_path / "vectors"
    if taken == "file":
        output.write_text("mine")
    elif taken == "folder":
        output.mkdir()
        (output / "notes.txt").write_text("mine")
    else:
        module("gpu", "lookahead.vectors").LookAhead.random(2, 24, 0).save(output)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"vectors is there already, expected a new path for the look-ahead vectors$"):
        train(model, TRAINING, HELD_OUT, output, SHORT)
    assert contents(tmp_path) == before


WRONG_TEXTS = [
    (TRAINING[:23], HELD_OUT, r"^the text has 23 tokens, expected at least 24 for batches of 2 windows of 8$"),
    (TRAINING, HELD_OUT[:7], r"^the held-out text has 7 tokens, expected at least 8, one window$"),
    (TRAINING[:0], HELD_OUT, r"^the text has 0 tokens"),
    (TRAINING + 1, HELD_OUT, r"^training: found the token 23, expected 0 to 22, the model's$"),
    (TRAINING, HELD_OUT - 1, r"^held_out: found the token -1, expected 0 to 22, the model's$"),
]


@pytest.mark.parametrize("training, held_out, message", WRONG_TEXTS)
def test_text_that_cannot_be_trained_on_is_refused(
    training: Any, held_out: Any, message: str, model: Transformer, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        train(model, training, held_out, tmp_path / "vectors", SHORT)
    assert os.listdir(tmp_path) == []


WRONG_SETTINGS = [
    (dict(loss="mse"), r"^loss: found 'mse', expected one of cross-entropy, kl, total-variation$"),
    *[
        (dict([(name, 0)]), rf"^{name}: found 0")
        for name in ("num_lookahead", "num_steps", "batch_size", "num_anchors")
    ],
    (dict(context=3), r"^context: found 3, expected an integer from 4"),
    (dict(seed=-1), r"^seed: found -1"),
    *[
        (dict([(name, value)]), rf"^{name}: found {value}, expected a positive number$")
        for name in ("learning_rate", "matrix_learning_rate", "depth_decay", "loss_temperature")
        for value in (0.0, -1.0, float("nan"), float("inf"))
    ],
    *[
        (dict([(name, -1)]), rf"^{name}: found -1, expected an integer from 0 to 65536$")
        for name in ("adapter_rank", "head_width")
    ],
    (dict(depth_decay=1.5), r"^depth_decay: found 1.5, expected at most 1$"),
    (
        dict(loss="cross-entropy", loss_temperature=0.5),
        r"^loss_temperature: found 0.5 with cross-entropy, expected it with a loss on distributions$",
    ),
    (dict(head_alone=True), r"^head_alone: found it without a head, expected a head and no adapter, as there are no"),
    (
        dict(head_alone=True, head_width=4, adapter_rank=2),
        r"^head_alone: found it with an adapter, expected a head and no adapter, as there are no look-ahead rows$",
    ),
    *[(dict(warmup=part), r"^warmup: found ") for part in (-0.1, 1.1, float("nan"))],
]


@pytest.mark.parametrize("changes, message", WRONG_SETTINGS)
def test_settings_with_which_nothing_can_be_trained_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SHORT, **changes)


def test_settings_beyond_the_model_are_refused(model: Transformer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^context: found 65, expected at most 64, the model's$"):
        train(model, TRAINING, HELD_OUT, tmp_path / "vectors", replace(SHORT, context=65))
    with pytest.raises(ValueError, match=r"^top_k: found 24, "):
        train(model, TRAINING, HELD_OUT, tmp_path / "vectors", replace(SHORT, sampling=SamplingConfig(1.0, 24)))


# --- Text that the model writes itself ---

KEPT = "vectors.text.safetensors"


@given(
    num_tokens=st.integers(1, 200), length=st.integers(2, 12), top_k=st.sampled_from([1, 2, 0]), seed=st.integers(0, 99)
)
def test_own_text_is_written_by_plain_decoding_under_the_settings(
    num_tokens: int, length: int, top_k: int, seed: int, model: Transformer
) -> None:
    text = own_text(model, num_tokens, length, SamplingConfig(0.7, top_k), seed)
    assert text.dtype == np.int64 and len(text) == num_tokens
    assert (own_text(model, num_tokens, length, SamplingConfig(0.7, top_k), seed) == text).all()
    for first in range(0, num_tokens, length):  # this model has no end of text, so all texts have this length
        piece = text[first : first + length]
        logits = model.forward(torch.from_numpy(piece[None]))[0, :-1]
        rank = (logits > logits.gather(1, torch.from_numpy(piece[1:, None]))).sum(dim=1)
        assert top_k == 0 or bool((rank < top_k).all())


def test_no_two_batches_of_own_text_read_the_same_stream(model: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not of one seed, nor of neighbouring ones."""
    uniform_streams: list[int] = []

    def written(*_: Any, seed: int, **__: Any) -> list[Any]:
        uniform_streams.append(seed)
        return [SimpleNamespace(prompt=(1,), tokens=(2, 3))]

    monkeypatch.setattr(module("gpu", "training.text"), "generate_batch", written)
    for seed in range(4):
        assert own_text(model, 30, 3, SamplingConfig(), seed).tolist() == [1, 2, 3] * 10
    assert len(uniform_streams) == len(set(uniform_streams)) == 40


def test_between_two_own_texts_stands_one_end_of_text(model: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    ending = Transformer(model.config, model.weights, eos_token_ids=(7,))
    written = [(7, 1, 2), (7, 3, 7), (7, 4, 7), (7, 7), (7, 5, 6)]
    results = [SimpleNamespace(prompt=text[:1], tokens=text[1:]) for text in written]
    monkeypatch.setattr(module("gpu", "training.text"), "generate_batch", lambda *_, **__: results)
    assert own_text(ending, 12, 3, SamplingConfig(), 0).tolist() == [7, 1, 2, 7, 3, 7, 4, 7, 7, 5, 6, 7]


def test_own_text_is_kept_and_found_again(model: Transformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[int] = []
    text = own_text(model, 500, 8, SamplingConfig(0.5), 3, tmp_path / KEPT, done.append)
    assert done == [256, 500] and os.listdir(tmp_path) == [KEPT]
    with monkeypatch.context() as patch:
        patch.delattr(module("gpu", "training.text"), "generate_batch")
        assert (own_text(model, 500, 8, SamplingConfig(0.5), 3, tmp_path / KEPT) == text).all()
    other = own_text(model, 500, 8, SamplingConfig(0.5), 4, tmp_path / KEPT)
    assert not np.array_equal(other, text)
    (tmp_path / KEPT).write_bytes(b"half")
    with pytest.raises(ValueError, match=r"vectors\.text\.safetensors is damaged or half-written"):
        own_text(model, 500, 8, SamplingConfig(0.5), 3, tmp_path / KEPT)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(num_tokens=0), r"^num_tokens: found 0, "),
        (dict(length=1), r"^length: found 1, "),
        (dict(length=65), r"^length: found 65, expected an integer from 2 to 64$"),
        (dict(seed=-1), r"^seed: found -1, "),
        (dict(sampling=SamplingConfig(1.0, 24)), r"^top_k: found 24, "),
    ],
)
def test_own_text_of_impossible_settings_is_refused(changes: dict[str, Any], message: str, model: Transformer) -> None:
    chosen = dict(num_tokens=10, length=5, sampling=SamplingConfig(), seed=0) | changes
    with pytest.raises(ValueError, match=message):
        own_text(model, **chosen)
