"""Decoding methods side by side, in paired runs that take turns, on one model and one set of prompts.

Every method writes the same number of tokens after every prompt, in turn with the others; who begins changes from turn
to turn. A speed is a ratio to plain decoding within one run over all prompts, and of these the median.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from pass_sampling.reference.config import SamplingConfig, check_integer

from ..generation import generate
from ..methods import Method

MOST_REPEATED = 0.2  # part of a text's 8-grams that may have stood in it before, if the text is to count


@dataclass(frozen=True)
class Run:
    """One text that a method wrote, and its cost."""

    tokens: tuple[int, ...]
    num_forward_passes: int  # of the target, the prompt's included
    num_positions: int  # rows fed through the target, the prompt's included
    num_draft_passes: int = 0  # of a drafting model
    num_drafts: int | None = None  # steps that drafted; None where the method does not tell
    accepted_per_position: tuple[int, ...] = ()
    seconds: float = 0.0

    @property
    def counts(self) -> bool:
        """Whether the text counts for tokens per pass: text that goes round in circles is easy to predict."""
        return repeated_ngrams(self.tokens) <= MOST_REPEATED


Runs = dict[str, list[list[Run]]]
"""The texts that were written, by name, repeat and prompt."""
Runner = Callable[[Sequence[int], int, int, int], Run]
"""Called as `runner(prompt, length, seed, request)`, which continues the prompt by `length` tokens."""


def repeated_ngrams(tokens: Sequence[int], size: int = 8) -> float:
    """Return the share of a text's n-grams that stood in it before; 0 for a text too short to have one.

    Source: Welleck et al. 2020, "Neural Text Generation with Unlikelihood Training" (arXiv 1908.04319), Sec. 6.
    """
    ngrams = [tuple(tokens[start : start + size]) for start in range(len(tokens) - size + 1)]
    return (len(ngrams) - len(set(ngrams))) / len(ngrams) if ngrams else 0.0


def clock(device: torch.device | str) -> float:
    """Return the seconds on the clock when a device has done what it was given."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@dataclass(frozen=True)
class Entry:
    """A method to be compared."""

    name: str
    write: Runner
    options: Mapping[str, Any] = field(default_factory=dict)
    method: Method | None = None  # None for transformers' own


def method_writer(method: Method, eos_token_ids: Sequence[int] = ()) -> Runner:
    """Return what writes with a method of this package; by default no token ends a text early."""

    def write(prompt: Sequence[int], max_new_tokens: int, seed: int, request: int) -> Run:
        result = generate(method, prompt, max_new_tokens, eos_token_ids, (), seed=seed, request=request)
        return Run(*(getattr(result, each.name) for each in fields(Run) if each.name != "seconds"))

    return write


@dataclass(eq=False)
class Baseline:
    """A model of transformers, and how many passes and rows it has been fed."""

    model: Any
    num_forward_passes: int = 0
    num_positions: int = 0

    def count(self, module: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Count a pass; called before each."""
        fed = named.get("input_ids")
        self.num_forward_passes += 1
        self.num_positions += int((arguments[0] if fed is None else fed).shape[1])


def load_peer(folder: Path, dtype: torch.dtype, device: torch.device) -> Baseline:
    """Load a checkpoint with transformers; neither its suggestions on sampling nor its ends of text are kept."""
    from transformers import GenerationConfig

    from ..hf.model_checks import load_with_transformers  # which loads much of transformers

    peer = Baseline(load_with_transformers(folder, dtype, device))
    peer.model.generation_config = GenerationConfig(pad_token_id=0)  # type: ignore[no-untyped-call]
    peer.model.register_forward_pre_hook(peer.count, with_kwargs=True)
    return peer


def peer_writer(
    target: Baseline,
    sampling: SamplingConfig,
    assistant: Baseline | None = None,
    num_draft: int = 0,
    eos_token_ids: Sequence[int] = (),
) -> Runner:
    """Return what writes with transformers' `generate`, under the same sampling settings.

    There are `num_draft` drafts at most: of an assistant, else looked up in the text; 0 is plain decoding.
    """
    settings: dict[str, Any] = {"eos_token_id": list(eos_token_ids)} if eos_token_ids else {}
    settings |= {"do_sample": sampling.temperature > 0}
    if sampling.temperature > 0:
        settings |= {"temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p}
    if assistant is not None:
        assistant.model.generation_config.num_assistant_tokens = num_draft
        assistant.model.generation_config.num_assistant_tokens_schedule = "constant"
        settings["assistant_model"] = assistant.model
    elif num_draft:
        settings["prompt_lookup_num_tokens"] = num_draft
    peers, device = [target] if assistant is None else [target, assistant], target.model.device

    def write(prompt: Sequence[int], max_new_tokens: int, seed: int, request: int) -> Run:
        for peer in peers:
            peer.num_forward_passes = peer.num_positions = 0
        tokens = torch.tensor([list(prompt)], device=device)
        limits = {"attention_mask": torch.ones_like(tokens), "max_new_tokens": max_new_tokens}
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed((seed * 0x9E3779B97F4A7C15 + request) % 2**63)  # it draws from a global generator
            written = target.model.generate(tokens, **limits, **settings)[0, len(prompt) :].tolist()
        draft_passes = sum(peer.num_forward_passes for peer in peers[1:])
        return Run(tuple(written), target.num_forward_passes, target.num_positions, draft_passes)

    return write


def run_all(
    entries: Sequence[Entry],
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    repeats: int,
    seed: int = 0,
    device: torch.device | str = "cpu",
    report: Callable[[int, int, Runs], None] = lambda done, total, runs: None,
    may_end: bool = False,
) -> Runs:
    """Let all write after all prompts, several times; return the runs by name, repeat and prompt.

    Each writes once after the first prompt to warm up. Every repeat has uniforms of its own, the same for all. After
    every text `report(done, total, runs)` is called, with the runs of all prompts that are done. A text that `may_end`
    may be shorter; any other raises RuntimeError.
    """
    check_integer("repeats", repeats, 1, 10**6)
    done, total = 0, (repeats * len(prompts) + 1) * len(entries)
    turns: list[list[dict[str, Run]]] = []  # by prompt and repeat

    def so_far() -> Runs:
        whole = [each for each in turns if len(each) == repeats]
        numbers = range(repeats if whole else 0)
        return {each.name: [[prompt[repeat][each.name] for prompt in whole] for repeat in numbers] for each in entries}

    def turn(repeat: int, number: int) -> dict[str, Run]:
        nonlocal done
        written = {}
        first = (repeat + number) % len(entries)  # with every turn another one begins
        for entry in (*entries[first:], *entries[:first]):
            started = clock(device)
            run = entry.write(prompts[number], max_new_tokens, seed, repeat * len(prompts) + number)
            written[entry.name] = replace(run, seconds=clock(device) - started)
            if (count := len(run.tokens)) > max_new_tokens or (count < max_new_tokens and not may_end):
                raise RuntimeError(f"{entry.name} wrote {count} tokens, expected {max_new_tokens}")
            done += 1
            report(done, total, so_far())
        return written

    turn(0, 0)
    for number in range(len(prompts)):
        turns.append([])
        for repeat in range(1, repeats + 1):
            turns[-1].append(turn(repeat, number))
    return so_far()
