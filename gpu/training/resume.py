"""A training run that survives being killed: its whole state in one file, replaced now and then in a single move.

Processes that torchrun has started may train together: each computes the gradients of its part of a batch, their mean
moves all of them alike, and the first one writes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed

from pass_sampling.reference.checkpoint.folder import read_header, replace_file

Report = Callable[[dict[str, Any]], object]
EVERY = 20.0  # seconds


def check_output(path: Path, what: str) -> None:
    """Raise ValueError for a path that is taken or cannot be written, before hours are spent on its contents."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"{path} already exists, expected a new path for the {what}")
    partial = partial_file(path)
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        os.lstat(partial.with_name(f".{partial.name}.new"))  # the longest name that will be written
    above = next(folder for folder in partial.parents if os.path.lexists(folder))
    try:
        os.rmdir(tempfile.mkdtemp(prefix=".pass-sampling-", dir=above))  # permissions alone do not tell
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"{path}: {above} is not writable ({reason}), expected a folder that is") from None


def partial_file(output: Path) -> Path:
    """Return where an unfinished run towards `output` keeps its state."""
    output = output.resolve()
    return output.with_name(output.name + ".partial.safetensors")


def remove_partial(output: Path) -> None:
    """Remove the state of a run towards `output`, its hidden states, and what was left where it was killed."""
    file = partial_file(output)
    for each in (file, *file.parent.glob(f".{file.name}.*.new"), *file.parent.glob(f"{output.name}.*.states")):
        each.unlink(missing_ok=True)


def process() -> tuple[int, int]:
    """Return the number of this process and how many train together: 0 and 1 without a process group."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def wait_for_all() -> None:
    """Wait until every process that trains has come here."""
    if process()[1] > 1:
        distributed.barrier()


class Progress:
    """One run towards an output: its parameters and optimizers, whose state is kept in a file next to the output."""

    def __init__(
        self,
        output: Path,
        settings: Mapping[str, Any],
        texts: Sequence[bytes],
        parameters: Mapping[str, Tensor],
        optimizers: Sequence[torch.optim.Optimizer],
    ):
        """Describe a run by all that it depends on; its state is written at most once in EVERY seconds."""
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        for text in texts:
            digest.update(hashlib.sha256(text).digest())
        self.file, self.digest = partial_file(output), digest.hexdigest()
        self.parameters, self.optimizers = parameters, optimizers
        self._saved_at = time.monotonic()

    def run(
        self,
        num_steps: int,
        learn: Callable[[int], Tensor],
        rate: Callable[[int], float],
        report: Report,
    ) -> dict[str, Any]:
        """Take the steps that remain, report and save after each; return the last loss and the seconds.

        `learn` computes a step's loss and its gradients, `rate` is the part of the learning rate. A report has `step`,
        `num_steps` and `loss`. Raise ValueError if the file is damaged or another run's, or the loss is not finite.
        """
        first, notes = self._restore()
        started = time.monotonic() - float(notes.get("seconds", 0.0))
        for step in range(first, num_steps):
            loss = self._averaged(learn(step)).item()
            if not math.isfinite(loss):
                raise ValueError(f"the loss at step {step + 1} is {loss}, expected a number; lower learning_rate")
            for optimizer in self.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = rate(step) * optimizer.defaults["lr"]
                optimizer.step()
                optimizer.zero_grad()
            report({"step": step + 1, "num_steps": num_steps, "loss": loss})
            notes = {"seconds": time.monotonic() - started, "loss": loss}
            if step + 1 == num_steps or time.monotonic() - self._saved_at >= EVERY:
                self._save(step + 1, notes)
        return notes

    def _averaged(self, loss: Tensor) -> Tensor:
        """Replace the gradients by their mean over the processes; return the mean loss."""
        count, loss = process()[1], loss.detach()
        for each in (loss, *(each.grad for each in self.parameters.values() if each.grad is not None)):
            if count > 1:
                distributed.all_reduce(each)
                each /= count
        return loss

    def _restore(self) -> tuple[int, dict[str, Any]]:
        """Return the steps done, 0 if none was, and the notes."""
        from safetensors import safe_open
        from safetensors.torch import load_file

        if not self.file.exists():
            return 0, {}
        read_header(self.file)
        with safe_open(self.file, framework="pt") as file:
            state = file.metadata() or {}
        if state.get("digest") != self.digest:
            what = "is an unfinished run with other settings, another model or other text"
            raise ValueError(f"{self.file} {what}, expected the same ones; remove it to begin again")
        tensors = load_file(self.file)
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(tensors[name])
        for i, optimizer in enumerate(self.optimizers):
            moments: dict[int, dict[str, Tensor]] = {}
            for name, tensor in tensors.items():
                if name.startswith(f"optimizer {i} "):
                    _, _, number, key = name.split(" ")
                    moments.setdefault(int(number), {})[key] = tensor
            optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
        return int(state["steps"]), dict(json.loads(state["notes"]))

    def _save(self, steps: int, notes: Mapping[str, Any]) -> None:
        from safetensors.torch import save

        if process()[0]:
            return
        tensors = {name: parameter.detach().cpu().contiguous() for name, parameter in self.parameters.items()}
        for i, optimizer in enumerate(self.optimizers):
            for number, moments in optimizer.state_dict()["state"].items():
                for key, value in moments.items():
                    tensors[f"optimizer {i} {number} {key}"] = torch.as_tensor(value).cpu().contiguous()
        state = {"digest": self.digest, "steps": str(steps), "notes": json.dumps(dict(notes))}
        replace_file(self.file, save(tensors, metadata=state))
        self._saved_at = time.monotonic()
