"""The settings of the methods that draft by a drafter, look-ahead rows or heads, of either package, and their checks.

Glossary of shapes: L look-ahead vectors, D input vector.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

from ..config import SamplingConfig, check_context, check_integer, check_settings
from ..uniforms import NamedUniforms
from ..verify import RULES
from . import tree_rules
from .tree_shape import NumCandidates, TreeShape, check_tree


@dataclass(frozen=True, eq=False)
class DrafterSettings:
    """The settings of a method whose drafts come from a drafter.

    `draft_sampling` sets the drafts' own sampling, on which the text's distribution does not depend.
    """

    model: Any
    drafter: Any
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    draft_sampling: SamplingConfig | None = None
    rule: str = "token"
    processor: Any = None
    rules: ClassVar[Collection[str]] = RULES

    def __post_init__(self) -> None:
        check_settings(self.model.vocab_size, self.sampling, self.draft_sampling, self.rule, self.rules)
        if (found := self.drafter.vocab_size) != (expected := self.model.vocab_size):
            raise ValueError(
                f"drafter: found {self.drafter.name!r} with a vocabulary of {found}, expected {expected} as in the "
                f"model {self.model.name!r}"
            )

    def _check_context(self, prompt_length: int, max_new_tokens: int) -> None:
        """Raise ValueError unless prompt and new tokens fit into the drafter's context, if it has one."""
        if (longest := self.drafter.max_position_embeddings) is not None:
            check_context(prompt_length, max_new_tokens, longest, f"the drafter {self.drafter.name!r}")


@dataclass(frozen=True, eq=False)
class SpeculativeSettings(DrafterSettings):
    """The settings of `SpeculativeSampling`."""

    num_draft: int = 4  # K
    schedule: Any = None  # a package's own
    lenience: float = 1.0

    def __post_init__(self) -> None:
        check_integer("num_draft", self.num_draft, 0, 2**16)
        super().__post_init__()
        if not 0 < self.lenience <= 1:
            raise ValueError(f"lenience: found {self.lenience!r:.80}, expected a number above 0 and at most 1")
        if self.lenience < 1 and self.rule != "token":
            raise ValueError(f"lenience: found {self.lenience} with the rule {self.rule!r}, expected the rule 'token'")

    @property
    def named_uniforms(self) -> NamedUniforms:
        """A draw and an acceptance per draft, and the final draw."""
        return {"draft": self.num_draft, "accept": self.num_draft, "final": 1}


@dataclass(frozen=True, eq=False)
class OneCallSettings:
    """The settings of a method whose one call per step verifies drafts and looks ahead for the next ones.

    `refinement` makes the drafts' logits from look-ahead rows and the tokens between (default: the head that was
    trained with the vectors, if any). `groups` are the numbers of accepted drafts after which a group follows (default:
    all); after another number, the next step drafts nothing. A head without look-ahead rows needs no groups.
    """

    model: Any
    lookahead: Any
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    draft_sampling: SamplingConfig | None = None
    rule: str = "token"
    processor: Any = None
    refinement: Any = None  # that of the folder
    groups: tuple[int, ...] | None = None
    rules: ClassVar[Collection[str]] = RULES

    def __post_init__(self) -> None:
        """Make what was trained ready; raise ValueError unless it suits the model, and all settings one another."""
        check_settings(self.model.vocab_size, self.sampling, self.draft_sampling, self.rule, self.rules)
        most, groups = len(self.vectors), self.groups
        if groups is not None and (len(set(groups)) < len(groups) or not set(groups) <= set(range(most + 1))):
            raise ValueError(f"groups: found {groups!r:.80}, expected different numbers of drafts, 0 to {most}")
        if self.refinement is None:
            object.__setattr__(self, "refinement", self._trained())
        self.refinement.check(self.model)

    @abstractmethod
    def _trained(self) -> Any:
        """Return the refinement that was trained with the vectors."""

    @property
    def num_vectors(self) -> int | None:
        """L; None: all vectors."""
        return None

    @cached_property
    def vectors(self) -> Any:  # [L, D]
        """The look-ahead vectors in use, as inputs of the model."""
        return self.lookahead.inputs(self.model, self.num_vectors)

    def has_group(self, num_accepted: int) -> bool:
        """Return whether a group of look-ahead rows follows this number of accepted drafts."""
        return self.refinement.uses_lookahead and (self.groups is None or num_accepted in self.groups)


@dataclass(frozen=True, eq=False)
class ChainSettings(OneCallSettings):
    """The settings of a method that drafts one token per look-ahead vector."""

    num_lookahead: int | None = None  # L; default: all vectors
    accept_top_k: int = 1  # above 1 lossy

    def __post_init__(self) -> None:
        """Check the settings; drafts below the likeliest token may be accepted only if decoding is greedy."""
        super().__post_init__()
        check_integer("accept_top_k", self.accept_top_k, 1, self.model.vocab_size)
        if self.accept_top_k > 1 and self.sampling.temperature > 0:
            found = f"{self.accept_top_k} with temperature {self.sampling.temperature:g}"
            raise ValueError(f"accept_top_k: found {found}, expected temperature 0")

    @property
    def num_vectors(self) -> int | None:
        """The number that is asked for."""
        return self.num_lookahead

    @property
    def named_uniforms(self) -> NamedUniforms:
        """A draw and an acceptance per draft, and the final draw."""
        return {"draft": len(self.vectors), "accept": len(self.vectors), "final": 1}


@dataclass(frozen=True, eq=False)
class BlockSettings(OneCallSettings):
    """The settings of a method that drafts by block heads: they use no look-ahead rows, nor the drafts before."""

    def __post_init__(self) -> None:
        super().__post_init__()
        drafts = getattr(self.refinement, "drafts", self.refinement)
        if drafts.uses_lookahead or drafts.reads_drafts:
            raise ValueError("lookahead: found parts without block heads, expected block heads for blockwise decoding")


@dataclass(frozen=True, eq=False)
class PathSettings(BlockSettings):
    """The settings of a method that drafts several paths through the lattice of a block."""

    num_paths: int = 4
    rule: str = "match"
    rules: ClassVar[Collection[str]] = ("match",)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("num_paths", self.num_paths, 1, 2**16)
        width, depth = getattr(self.refinement, "width", None) or self.model.vocab_size, self.depth
        if depth and self.num_paths > width**depth:
            raise ValueError(
                f"num_paths: found {self.num_paths}, expected at most {width**depth}, as {depth} drafts of {width}"
            )

    @property
    def depth(self) -> int:
        """Drafts of a path: one for each head."""
        return len(self.vectors)

    @property
    def chains(self) -> NumCandidates:
        """The shape of the paths: chains beside one another, after the last token."""
        return (self.num_paths, *(1,) * (self.depth - 1))[: self.depth]

    @property
    def named_uniforms(self) -> NamedUniforms:
        """A draw from the model for each depth, and the final draw."""
        return {"accept": self.depth, "final": 1}


@dataclass(frozen=True, eq=False)
class TreeSettings:
    """The settings of a method that drafts a tree: `num_candidates[d]` tokens after each place of depth d."""

    rule: str = "without-replacement"
    num_candidates: NumCandidates = (2, 2, 1)
    rules: ClassVar[Collection[str]] = tree_rules.RULES

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[misc]  # of the method's other settings
        check_tree(self.num_candidates)

    @property
    @abstractmethod
    def tree(self) -> TreeShape:
        """The shape of the drafts."""

    @property
    def named_uniforms(self) -> NamedUniforms:
        """Those of the tree."""
        return self.tree.named_uniforms
