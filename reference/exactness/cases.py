"""The configurations of the exact suite: small models with the settings of a target and of its drafts.

Each has at least three tokens, two drafts, a different row after every prefix, and a second step that verifies drafts.
For long texts and large vocabularies the settings give few tokens a probability above 0, so there are few executions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from importlib import import_module
from typing import Any

import numpy as np

from ..drafters.ngram import NgramOrder
from ..text.token_decoder import Piece, TokenDecoder

PROMPT = (1, 0)
TINY: dict[str, Any] = {
    "vocab_size": 3,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "max_position_embeddings": 64,
}
LARGE: dict[str, Any] = TINY | {"vocab_size": 80}
RUNS = (("x",), ("", b"\xc3"), ("", b"\xa9"))  # the prompt ends in x
WINDOWED: dict[str, Any] = TINY | {"sliding_window": 3, "query_key_norm": True, "attention_bias": True}


def methods_of(package: Any) -> list[tuple[str, str | None]]:
    """Return the pairs of a method and a rule that a package has registered; see `Configuration.method`.

    Speculative sampling is listed once per drafter, under the drafter's name, and with trees for one drafter. Blockwise
    decoding is listed without rescoring, and with its drafts rescored by n-grams or by a sampler head. One-call PaSS is
    listed alone, and with a free drafter before its own drafts.
    """
    methods, drafters = _room(package, "methods"), _room(package, "drafters").DRAFTERS
    found: list[tuple[str, str | None]] = []
    for name in methods.METHODS:
        rescored = [name, f"{name}+ngram", f"{name}+head"]
        names = {
            "speculative": [*drafters],
            "speculative-tree": ["draft-model-tree"],
            "pass-one-call": [name, f"{name}+lookup"],
            "blockwise": rescored,
            "blockwise-paths": rescored,
        }.get(name, [name])
        found += [(each, rule) for each in names for rule in methods.rules_of(name) or (None,)]
    return found


def _room(package: Any, name: str) -> Any:
    return import_module(f"{package.__name__}.{name}")


def penalty(prefix: tuple[int, ...], logits: Any) -> Any:
    """Lower the logit of each token by 0.4 per occurrence in the prefix: a processor that depends on all of it."""
    counts = [float(prefix.count(token)) for token in range(len(logits))]
    return logits - 0.4 * (np.array(counts) if isinstance(logits, np.ndarray) else logits.new_tensor(counts))


def bigrams(package: Any, vocab_size: int) -> Any:
    """Return an n-gram model in which two tokens follow each token more often than the other tokens do."""
    followers = [sorted({(token + 1) % vocab_size, (token + 2) % vocab_size}) for token in range(vocab_size)]
    codes = np.array([150 + 10 * (place % 4) for place in range(sum(map(len, followers)))])
    order = NgramOrder(np.array([len(each) for each in followers]), np.concatenate(followers), codes)
    return package.NgramModel(np.arange(1, vocab_size + 1, dtype=np.float32), (order,))


@dataclass(frozen=True)
class Configuration:
    """One small model, with the settings of a target and of its drafts."""

    name: str
    shape: dict[str, Any] | None = None  # of a transformer; None: a table
    seed: int = 0
    vocab_size: int = 3  # of a table
    num_draft: int = 2  # drafts per step
    zeros: float = 0.1  # share of a table's tokens that are masked
    spread: float = 1.5  # size of a table's logits
    levels: int = 0  # of logits, if not 0: so few that tokens tie
    popular: tuple[int, ...] = ()  # tokens that are likely after every prefix
    sampling: dict[str, Any] = field(default_factory=dict)
    draft_sampling: dict[str, Any] | None = None
    eos_token_ids: tuple[int, ...] = (2,)
    stop_strings: tuple[str, ...] = ()
    pieces: tuple[tuple[Any, ...], ...] = ()  # of a decoder with byte fallback: what each token adds, text or a byte
    max_new_tokens: int = 5
    num_candidates: tuple[Any, ...] = (2,)  # per depth, where the method drafts trees
    refine: str | None = None  # what refines drafts from look-ahead rows; default: the head, where there is one
    schedule: tuple[str, dict[str, Any]] = ("fixed", {})  # of draft lengths, where the method has one
    processor: Callable[..., Any] | None = None

    def __hash__(self) -> int:
        """Hash the name, which no other configuration has. Equality compares all fields."""
        return hash(self.name)

    def model(self, package: Any) -> Any:
        """Return the model, in float64; the same numbers in both packages."""
        return self._model(package, self.seed, self.num_draft)

    def _lookahead(self, package: Any, model: Any) -> Any:
        """Return untrained look-ahead vectors; those for a transformer have an untrained adapter and head."""
        if self.shape is None:
            return model.lookahead()
        vectors = package.LookAhead.random(self.num_draft, model.hidden_size, seed=7)
        head = package.SamplerHead.random(model.hidden_size, width=5, seed=9)
        head = replace(head, uses_lookahead=self.refine != "alone")
        return replace(vectors, adapter=package.Adapter.random(model.config, rank=2, seed=8), head=head)

    def _model(self, package: Any, seed: int, num_lookahead: int) -> Any:
        if self.shape is None:
            likely = {"levels": self.levels, "popular": self.popular}
            return package.TableModel(self.vocab_size, num_lookahead, seed, self.spread, self.zeros, **likely)
        config = package.ModelConfig(**self.shape)
        weights = package.Weights.random(config, seed)
        weights.output[list(self.popular)] *= 4.0
        if self.levels:
            weights.output[:] = weights.output[[token % self.levels for token in range(config.vocab_size)]]
        return package.Transformer(config, weights)

    def method(self, package: Any, name: str, rule: str | None) -> Any:
        """Return the method of this name, or speculative sampling with the drafter of this name, over the model."""
        methods, drafters = _room(package, "methods").METHODS, _room(package, "drafters").DRAFTERS
        name, _, rescorer = name.partition("+")
        drafter = name.removesuffix("-tree")
        kind = methods.get(name.replace(drafter, "speculative") if drafter in drafters else name)
        if kind is None:
            names = sorted({each for each, _ in methods_of(package)})
            raise ValueError(f"method: found {name!r}, expected one of {', '.join(names)}")
        model, sampling = self.model(package), package.SamplingConfig(**self.sampling)
        settings: dict[str, Any] = {
            "draft_sampling": None if self.draft_sampling is None else package.SamplingConfig(**self.draft_sampling),
            "rule": rule,
            "num_candidates": self.num_candidates,
            "num_draft": self.num_draft,
            "num_paths": 2,
        }
        taken = {each.name for each in fields(kind)}
        if "drafter" in taken:
            settings["drafter"] = self._drafter(package, drafter)
        if "lookahead" in taken:
            vectors = self._lookahead(package, model)
            settings["lookahead"] = vectors if "refinement" in taken else replace(vectors, adapter=None, head=None)
            settings["refinement"] = self._refinement(package, vectors, model, rescorer)
            if name.startswith("blockwise"):
                settings |= self._block(package, model, vectors, rescorer)
        if "schedule" in taken:
            kinds, (schedule, numbers) = _room(package, "drafters.schedule").SCHEDULES, self.schedule
            settings["schedule"] = kinds[schedule](**numbers)
        own = {setting: value for setting, value in settings.items() if setting in taken}
        return kind(model=model, sampling=sampling, processor=self.processor, **own)

    def _drafter(self, package: Any, name: str) -> Any:
        """Return the drafter of this name. A registered drafter without a case below takes the vocabulary's size."""
        vocab_size = self.shape["vocab_size"] if self.shape else self.vocab_size
        if name == "draft-model":
            return package.ModelDrafter(self._model(package, self.seed + 50, 0))
        if name == "lookup-ngram":
            return package.FirstOf((package.PromptLookup(vocab_size, 3, 2), bigrams(package, vocab_size)), 0.3)
        return (
            bigrams(package, vocab_size) if name == "ngram" else _room(package, "drafters").DRAFTERS[name](vocab_size)
        )

    def suited(self, method: str) -> Configuration:
        """Return the configuration for a method. For a rescoring head a table becomes a transformer, which it needs."""
        if self.shape is not None or not method.endswith("+head"):
            return self
        return replace(self, name=f"{self.name}, as a transformer", shape=TINY | {"vocab_size": self.vocab_size})

    def _refinement(self, package: Any, vectors: Any, model: Any, rescorer: str) -> Any:
        """Return the refinement of drafts from look-ahead rows, or None for the one that belongs to the vectors."""
        if rescorer == "lookup":
            own = _room(package, "lookahead.refinement").refinement_of(vectors, vectors.inputs(model).dtype)
            drafter = self._drafter(package, "lookup-ngram")
            return _room(package, "lookahead.free_first").FreeFirst(drafter, own, 0.4)
        if self.refine != "ngram":
            return None
        return _room(package, "lookahead.rescoring").ngram_refinement(bigrams(package, self.vocab_size))

    def _block(self, package: Any, model: Any, vectors: Any, rescorer: str) -> dict[str, Any]:
        """Return the settings from which blockwise decoding drafts: untrained heads, or the last row of a table."""
        refinement, rescoring = (_room(package, f"lookahead.{room}") for room in ("refinement", "rescoring"))
        if self.shape is None:
            drafts = head = type("LastRow", (refinement.Unrefined,), {"uses_lookahead": False})()
        else:
            dtype, size = vectors.inputs(model).dtype, model.hidden_size
            drawn = _room(package, "lookahead.head").BlockHeads.random(size, 5, max(1, self.num_draft), seed=10)
            alone = replace(package.SamplerHead.random(size, 5, seed=9), uses_lookahead=False)
            drafts, head = (refinement.HeadRefinement(each.to(dtype)) for each in (drawn, alone))
        if rescorer == "ngram":
            scores = rescoring.NgramScores(bigrams(package, model.vocab_size))
            drafts = rescoring.Rescored(drafts, scores, width=min(4, model.vocab_size))
        elif rescorer == "head":
            drafts = rescoring.Rescored(drafts, head, 0.5, min(3, model.vocab_size))
        return {"lookahead": vectors, "refinement": drafts}

    def ending(self, package: Any) -> Any:
        """Return the rule that ends texts; stop strings are searched for in text that is decoded token by token."""
        pieces = [Piece(*each) for each in self.pieces]
        decode = TokenDecoder(pieces.__getitem__, in_runs=True) if pieces else None
        return package.Ending(self.max_new_tokens, self.eos_token_ids, self.stop_strings, decode)


def configurations(every: bool = True) -> list[Configuration]:
    """Return the configurations of the suite: all of them, or those that one minute suffices for."""
    settings: dict[str, dict[str, Any]] = {
        "temperature 1": {},
        "temperature 0.6": {"temperature": 0.6},
        "temperature 1.7": {"temperature": 1.7},
        "top-k 2": {"top_k": 2},
        "top-p 0.75": {"top_p": 0.75},
        "all three": {"temperature": 0.8, "top_k": 2, "top_p": 0.9},
    }
    in_tables = dict(zip(settings, (12, 13, 30, 15, 16, 17), strict=True))
    greedy: dict[str, Any] = {"sampling": {"temperature": 0.0}, "eos_token_ids": (), "max_new_tokens": 14}
    few: dict[str, Any] = {"draft_sampling": {"top_k": 2}, "eos_token_ids": (), "max_new_tokens": 14}  # ways to go on
    many: dict[str, Any] = {"popular": (78, 79, 0, 1, 2)}  # tokens
    brief = [
        Configuration(f"table, {name}", seed=in_tables[name], sampling=settings[name])
        for name in ("temperature 1", "top-p 0.75", "all three")
    ]
    brief += [
        Configuration("table, greedy", seed=1, **greedy),
        Configuration(
            "table, narrow drafts", seed=3, draft_sampling={"temperature": 0.7, "top_k": 2}, num_candidates=(2, 1)
        ),
        Configuration("table, many zeros", seed=6, zeros=0.4, num_candidates=(2, (1, 0))),
        Configuration("table, two ends of text", seed=18, eos_token_ids=(1, 2), spread=1.0, num_candidates=(2, (0, 1))),
        Configuration(
            "table, penalty and filters", seed=21, processor=penalty, sampling={"temperature": 0.9, "top_p": 0.9}
        ),
        Configuration(
            "table, draft lengths by entropy",
            seed=23,
            schedule=("entropy", {"threshold": 0.6, "step": 0.5}),
            num_draft=3,
            spread=3.0,
        ),
        Configuration("table, ties", seed=2, vocab_size=4, levels=2, sampling={"top_k": 2}),
        Configuration("table, ties, greedy", seed=26, vocab_size=5, levels=2, **greedy),
        Configuration("table, 80 tokens", seed=23, vocab_size=80, sampling={"top_k": 2}, **many),
        Configuration(
            "table, 14 of 80 tokens",
            seed=69,
            vocab_size=80,
            spread=6.0,
            sampling={"top_k": 2, "top_p": 0.7},
            **few,
            **many,
        ),
        Configuration("transformer, all three", TINY, seed=5, sampling=settings["all three"], num_candidates=(2, 1)),
        Configuration("transformer, greedy", TINY, seed=6, **greedy),
        Configuration("transformer, 80 tokens", LARGE, seed=49, sampling={"top_k": 2}, **many),
        Configuration("transformer, greedy beyond a window", WINDOWED, seed=20, **greedy),
    ]
    more = [
        Configuration(f"table, {name}", seed=in_tables[name], sampling=settings[name])
        for name in ("temperature 0.6", "temperature 1.7", "top-k 2")
    ]
    more += [
        Configuration("table, greedy drafts", seed=2, draft_sampling={"temperature": 0.0}),
        Configuration(
            "table, wide drafts",
            seed=4,
            sampling={"top_k": 2},
            draft_sampling={"temperature": 2.0},
            num_candidates=(1, 2),
        ),
        Configuration("table, without zeros", seed=5, zeros=0.0, refine="ngram"),
        Configuration("table, peaked rows", seed=30, spread=6.0),
        Configuration("table, nearly equal rows", seed=8, spread=0.05),
        Configuration("table, 4 tokens", seed=9, vocab_size=4, zeros=0.3, refine="ngram"),
        Configuration("table, 3 drafts", seed=10, num_draft=3, num_candidates=(3,)),
        Configuration("table, no end of text", seed=11, eos_token_ids=()),
        Configuration("table, longer texts", seed=19, max_new_tokens=6),
        Configuration("table, byte fallback", seed=24, eos_token_ids=(), stop_strings=("é", "xx"), pieces=RUNS),
        Configuration("table, penalty", seed=20, processor=penalty),
        Configuration("table, heuristic draft lengths", seed=22, schedule=("heuristic", {"initial": 1}), num_draft=3),
        Configuration("table, ties, top-p", seed=20, vocab_size=4, levels=3, sampling={"top_p": 0.6}),
        Configuration("table, 80 tokens, greedy", seed=15, vocab_size=80, **greedy, **many),
        Configuration("transformer", TINY, seed=4),
        Configuration("transformer, sliding window", WINDOWED, seed=9),
        Configuration("transformer, penalty", TINY, seed=8, processor=penalty, refine="alone"),
        Configuration("transformer, ties", TINY | {"vocab_size": 6}, seed=17, levels=3, sampling={"top_k": 2}),
        Configuration(
            "transformer, 14 tokens beyond a window", WINDOWED, seed=29, sampling={"top_k": 2, "top_p": 0.6}, **few
        ),
    ]
    return [*brief, *more] if every else brief
