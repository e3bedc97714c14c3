"""A training run that survives being killed: its whole state in one file, replaced now and then in a single move."""

from __future__ import annotations

import hashlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pass_sampling.reference.checkpoint.folder import read_header, replace_file

Report = Callable[[dict[str, Any]], object]


def check_output(path: Path, what: str) -> None:
    """Raise ValueError for a path with a file or a folder that is not empty: nothing is overwritten."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"{path} is there already, expected a new path for the {what}")


def partial_file(output: Path) -> Path:
    """Return where an unfinished run towards `output` keeps its state."""
    output = output.resolve()
    return output.with_name(output.name + ".partial.safetensors")


def remove_partial(output: Path) -> None:
    """Remove the state of a run towards `output`, and what writing it left behind where the run was killed."""
    file = partial_file(output)
    for each in (file, *file.parent.glob(f".{file.name}.*.new")):
        each.unlink(missing_ok=True)


def settings_digest(settings: Mapping[str, Any], *parts: bytes) -> str:
    """Return a fingerprint of all that a run depends on: resumed under other settings it would be another run."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for part in parts:
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()


class Progress:
    """The state of one run: parameters, optimizers, the number of steps done, and some numbers to remember."""

    def __init__(
        self,
        file: Path,
        digest: str,
        parameters: Mapping[str, Tensor],
        optimizers: Sequence[torch.optim.Optimizer],
        every: float = 20.0,
    ):
        """Describe a run whose state goes to `file`, at most once in `every` seconds."""
        self.file, self.digest, self.every = file, digest, every
        self.parameters, self.optimizers = parameters, optimizers
        self._saved_at = time.monotonic()

    def restore(self) -> tuple[int, dict[str, Any]]:
        """Return the steps done (0 if none was) and the notes; raise ValueError if the file is damaged or another's."""
        from safetensors import safe_open
        from safetensors.torch import load_file

        if not self.file.exists():
            return 0, {}
        read_header(self.file)
        with safe_open(self.file, framework="pt") as file:
            state = file.metadata() or {}
        if state.get("digest") != self.digest:
            what = "is an unfinished run with other settings, another model or other text"
            raise ValueError(f"{self.file} {what}, expected the same ones; remove it to begin anew")
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

    def save(self, steps: int, notes: Mapping[str, Any], now: bool = False) -> None:
        """Write the state, if the last time is long enough ago or it must be `now`."""
        from safetensors.torch import save

        if not now and time.monotonic() - self._saved_at < self.every:
            return
        tensors = {name: parameter.detach().cpu().contiguous() for name, parameter in self.parameters.items()}
        for i, optimizer in enumerate(self.optimizers):
            for number, moments in optimizer.state_dict()["state"].items():
                for key, value in moments.items():
                    tensors[f"optimizer {i} {number} {key}"] = torch.as_tensor(value).cpu().contiguous()
        state = {"digest": self.digest, "steps": str(steps), "notes": json.dumps(dict(notes))}
        replace_file(self.file, save(tensors, metadata=state))
        self._saved_at = time.monotonic()

    def run(
        self,
        steps: range,
        notes: dict[str, Any],
        learn: Callable[[int], dict[str, Any]],
        report: Report,
        device: torch.device,
    ) -> None:
        """Take the steps that remain, report and save after each; keep the last loss and the seconds in the notes.

        `learn` takes one step and returns its `loss`. It is reported with `step` and `num_steps`; after the second one,
        as the first one warms up, `first_step`, `seconds_per_step` and `memory` are, too.
        """
        started = time.monotonic() - float(notes.get("seconds", 0.0))
        for step in steps:
            began = time.monotonic()
            news = {"step": step + 1, "num_steps": steps.stop} | learn(step)
            if not math.isfinite(news["loss"]):
                raise ValueError(
                    f"the loss of step {step + 1} is {news['loss']}, expected a number: lower learning_rate"
                )
            if step == steps.start + 1:
                seconds = time.monotonic() - began
                news |= {"first_step": steps.start, "seconds_per_step": seconds, "memory": peak_memory(device)}
            report(news)
            notes |= {"seconds": time.monotonic() - started, "loss": news["loss"]}
            self.save(step + 1, notes, now=step + 1 == steps.stop)


def step_all(optimizers: Iterable[torch.optim.Optimizer], part: float) -> None:
    """Take a step of each optimizer, at a part of its learning rate, and clear the gradients."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = part * optimizer.defaults["lr"]
        optimizer.step()
        optimizer.zero_grad()


def peak_memory(device: torch.device) -> int | None:
    """Return the most bytes in use so far: on the device, or of this process; None where the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)
