"""A page that shows how a text was decoded: which drafts were made, and why each was accepted or rejected.

Use it on what `generate(..., trace=True)` returns, in either package. The page is one HTML file that loads nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from itertools import takewhile
from typing import Any

import numpy as np

from ..record import Choice, Generation, Record
from ..sampling import Probs
from ..uniforms import uniform_stream
from .decoder import Decode
from .token_decoder import TokenDecoder

MOST_TOP = 5  # tokens of each distribution
BYTES, BYTES_PER_TOKEN = 50_000, 1_100  # of a page with so many; a page that would be longer has fewer


@dataclass(frozen=True)
class Traced:
    """One decoding that `generate(method, ..., seed=seed, request=request, trace=True)` returned.

    `target_probs` are the target's distributions after the prompt and each new token. They are shown beside the drafts.
    """

    name: str
    method: Any  # of either package
    generation: Generation
    seed: int = 0
    request: int = 0
    target_probs: Sequence[Probs] | Probs = ()  # [N, V], or fewer rows


def trace_page(decodings: Sequence[Traced], decode: Decode | None = None) -> str:
    """Return the HTML page of one decoding, or of several of one prompt; without `decode` it shows token ids.

    Raise ValueError if there is no decoding, the prompts differ, or a record has no choices.
    """
    if (count := len({each.generation.prompt for each in decodings})) != 1:
        raise ValueError(f"decodings: found {count} prompts, expected one or more decodings of one prompt")
    if any(record.choices is None for each in decodings for record in each.generation.records):
        raise ValueError("decodings: found a record without choices, expected generate(..., trace=True)")
    limit = BYTES + BYTES_PER_TOKEN * max(len(each.generation.tokens) for each in decodings)
    for num_top in range(MOST_TOP, 0, -1):
        content = _content(decodings, decode or (lambda tokens: "".join(map("[{}]".format, tokens))), num_top)
        if len(content) <= limit:
            break
    return (files(__package__) / "trace.html").read_text("utf-8").replace("{{trace}}", content.replace("<", "\\u003c"))


def _content(decodings: Sequence[Traced], decode: Decode, num_top: int) -> str:
    """Return all that the page shows as JSON: the text of each token once, and tokens as indices into the texts."""
    numbers: dict[int, int] = {}  # of tokens on the page
    runs = [_run(each, decode, numbers, num_top) for each in decodings]
    texts = [decode([token]) for token in numbers]
    found = {"prompt": decode(decodings[0].generation.prompt), "tokens": texts, "ids": list(numbers), "runs": runs}
    return json.dumps(found, separators=(",", ":"), allow_nan=False)


def _run(traced: Traced, decode: Decode, numbers: dict[int, int], num_top: int) -> dict[str, Any]:
    """Return what the page shows of one decoding."""
    generation, steps, start = traced.generation, [], 0
    for index, record in enumerate(generation.records):
        steps.append(_Step(traced, record, index, start, numbers, num_top).content())
        start += len(record.tokens)
    counts = ("num_forward_passes", "num_draft_passes", "num_draft_tokens", "num_accepted_tokens")
    found = {"name": traced.name, "rule": getattr(traced.method, "rule", None), "seed": traced.seed, "steps": steps}
    is_lossy = any(getattr(traced.method, name, 1) != 1 for name in ("lenience", "accept_top_k"))
    found |= {"sampling": asdict(traced.method.sampling), "lossy": is_lossy}
    found["pieces"] = pieces(generation, decode)
    return found | {name: getattr(generation, name) for name in counts}


def pieces(generation: Generation, decode: Decode) -> list[str]:
    """Return the text that each new token adds; a character of several tokens belongs to the last of them."""
    if not isinstance(decode, TokenDecoder):
        return [decode([token]) for token in generation.tokens]
    texts = [decode.start((), generation.prompt)]
    for token in generation.tokens:
        texts.append(texts[-1].after((token,)))
    return [text.news for text in texts[1:-1]] + [text.news + text.rest for text in texts[1:][-1:]]


@dataclass(frozen=True)
class _Step:
    """One step, and how to write it down."""

    traced: Traced
    record: Record
    index: int
    start: int  # new tokens before the step
    numbers: dict[int, int]  # of tokens on the page
    num_top: int

    def content(self) -> dict[str, Any]:
        """Return what the page shows of the step."""
        parents = self.record.draft_parents or range(-1, len(self.record.draft_tokens) - 1)
        depths = self.record.draft_depths
        return {
            "tokens": list(map(self.number, self.record.tokens)),
            "sources": [source[0] for source in self.record.sources],
            **{name: next(map(self.drawn, self.choices(name)), None) for name in ("exact", "final")},
            "drafts": self.drafts(parents, depths),
            "passes": self.passes(depths),
        }

    def choices(self, name: str) -> list[Choice]:
        """Return the choices that used the named uniforms, by column."""
        named = self.traced.method.named_uniforms
        start = sum(named[each] for each in takewhile(name.__ne__, named))
        columns = range(start, start + named.get(name, 0))
        return sorted((each for each in self.record.choices or () if each.column in columns), key=lambda c: c.column)

    def drafts(self, parents: Sequence[int], depths: Sequence[int]) -> list[dict[str, Any]]:
        """Return the drafts; of those that verification did not reach, no more than token and place."""
        record, drawn, found = self.record, self.choices("draft"), []
        tokens, rule = record.draft_tokens, getattr(self.traced.method, "rule", None)
        has_drawn, start = [each.outcome for each in drawn] == list(tokens), self.start + len(self.choices("exact"))
        rows = self.traced.target_probs[start : start + record.num_accepted + 1]
        for i, (outcome, choice) in enumerate(outcomes(record, parents, self.choices("accept"), rule)):
            draft: dict[str, Any] = {"token": self.number(tokens[i]), "parent": parents[i]}
            if outcome:
                draft |= {"outcome": outcome, "draft": _short(record.draft_token_probs[i])}
                draft |= {"target": _short(record.target_token_probs[i]), "accept": _short(record.accept_probs[i])}
                draft |= {"drawn": self.drawn(drawn[i])} if has_drawn else {}
                draft |= {"row": self.top(np.cumsum(rows[depths[i] - 1]))} if depths[i] <= len(rows) else {}
            if choice is not None:
                draft |= {"matched": self.drawn(choice)} if rule == "match" else {"uniform": self.uniform(choice)}
            found.append(draft)
        return found

    def passes(self, depths: Sequence[int]) -> list[dict[str, Any]]:
        """Return the rows of each pass: 0 is the last token, 1 + i is draft i, and a group follows each anchor."""
        record, groups = self.record, getattr(self.traced.method, "groups", None)
        num_pending = 1 if self.index else len(self.traced.generation.prompt)
        num_ahead = record.num_positions - num_pending - len(record.draft_tokens)  # look-ahead rows
        if record.num_forward_passes == 2:  # the first drafts, and the second begins with the exact token
            first = {"verifies": False, "anchors": [0] if num_ahead > 1 else [], "depth": num_ahead - 1}
            return [first, {"verifies": True, "anchors": [], "depth": 0}]
        places = enumerate((0, *depths))
        anchors = [place for place, depth in places if groups is None or depth in groups] if num_ahead else []
        return [{"verifies": True, "anchors": anchors, "depth": num_ahead // max(1, len(anchors))}]

    def number(self, token: int) -> int:
        return self.numbers.setdefault(int(token), len(self.numbers))

    def drawn(self, choice: Choice) -> dict[str, Any]:
        """Return a draw: its uniform, its outcome, and the likeliest tokens."""
        top = self.top(choice.edges, choice.outcome)
        return {"uniform": self.uniform(choice), "token": self.number(choice.outcome), "top": top}

    def uniform(self, choice: Choice) -> float | None:
        """Return the uniform of a choice."""
        return _short(uniform_stream(self.traced.seed, self.traced.request, self.index, choice.column + 1)[-1])

    def top(self, edges: Any, outcome: int = -1) -> list[float | None]:
        """Return token, probability and lower edge of each of the likeliest tokens, and of the outcome."""
        probs = np.diff(edges, prepend=0.0)
        largest = np.argpartition(-probs, min(self.num_top, len(probs)) - 1)[: self.num_top].tolist()
        tokens = sorted({*largest, outcome} - {-1}, key=lambda token: (-probs[token], token))
        found = [(self.number(t), _short(probs[t]), _short(edges[t] - probs[t])) for t in tokens if probs[t] > 0]
        return [value for each in found for value in each]


def outcomes(
    record: Record, parents: Sequence[int], accepts: Sequence[Choice], rule: str | None
) -> list[tuple[str, Choice | None]]:
    """Return the outcome of each draft, "accepted", "rejected" or "" if it was not reached, and its choice, if any."""
    found: list[tuple[str, Choice | None]] = [("", None)] * len(record.draft_tokens)
    if rule == "block":
        unasked = [None] * (len(found) - len(accepts))  # of runs shorter than the one that is kept
        return [("accepted" if i < record.num_accepted else "rejected", c) for i, c in enumerate([*unasked, *accepts])]
    waiting, alive = iter(accepts), {-1}
    while candidates := [i for i, parent in enumerate(parents) if parent in alive]:
        alive, choice = set(), None
        for i in candidates:
            if choice is None or rule != "match":  # one draw from the target decides about all candidates
                choice = next(waiting, None)
            if choice is None:  # the text has ended
                return found
            is_hit = choice.outcome == (record.draft_tokens[i] if rule == "match" else 0)
            found[i], alive = ("accepted" if is_hit else "rejected", choice), alive | ({i} if is_hit else set())
            if is_hit and rule != "match":
                break
    return found


def _short(value: float) -> float | None:
    """Return a probability to five digits, or None for NaN."""
    return None if np.isnan(value) else float(f"{max(value, 0.0):.5g}")
