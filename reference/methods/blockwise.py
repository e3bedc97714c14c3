"""Blockwise parallel decoding: heads on the last hidden state draft the next block, in the pass that verifies this one.

With t tokens of text, a step is

    predict   draft_i ~ head_i(hidden_t), i = 1 ... K, from the pass of the step before
    verify    one pass over the pending token and the drafts; row i is the model's distribution after i drafts
    accept    as many drafts as the rule allows, and the token after them from the model itself

The last accepted row of the pass is what the heads draft from next, so drafting takes no pass of its own. Greedy, by
the rule `match`, a step is that of the paper. With other settings the drafts are verified as any others are, so the
text has the model's distribution.

The paper also trains the model together with its heads; here the model is frozen. Its top-k acceptance is the option
`accept_top_k`; without it every rule is exact.

A block may be rescored (`lookahead.rescoring`): draft by draft, or as a whole by `BlockwisePaths`, which verifies the
best few paths through the block's lattice side by side.

Source: Stern et al. 2018 (arXiv 1811.03115), Sec. 3 and 4 (predict, verify and accept, merged into one pass); Kim et
al. 2024 (arXiv 2404.09221), for rescored blocks.

Glossary of shapes: N drafts of a tree, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ..lookahead.refinement import Memory
from ..lookahead.rescoring import log_probs
from ..model.layers import Array
from ..record import Record
from ..uniforms import UniformRow
from .base import State, drafting_record
from .pass_one_call import OneCall, PaSSOneCall
from .settings import BlockSettings, PathSettings
from .tree_shape import DraftTree, TreeDrafts, Walk, tree_record

STEP = 2.0**-24  # scores are multiples of it, so that sums are exact, and equal where they should be


@dataclass(frozen=True, eq=False)
class Blockwise(BlockSettings, PaSSOneCall):
    """Verify a block of drafts and draft the next one by heads, in one pass without look-ahead rows."""


@dataclass(frozen=True, eq=False)
class BlockwisePaths(PathSettings, OneCall):
    """Draft the best paths through a block's lattice, and verify them side by side: the longest accepted one wins.

    A path's score is the sum of its drafts' scores, see `Rescored`, which depend on the path. The paths are found by a
    beam of as many: exactly the best ones where nothing rescores the block and none of them ends the text. Nothing is
    drawn to draft, so the one rule is `match`: each token is the model's own draw, and the paths that continue with it
    remain.

    Source: Kim et al. 2024 (arXiv 2404.09221), for p-best rescoring and its control without a model of language.
    """

    @cached_property
    def tree(self) -> DraftTree:
        """Chains beside one another, after the last token."""
        return DraftTree(self.chains)

    def step(self, state: State, uniforms: npt.NDArray[np.float64], trace: bool = False) -> tuple[State, Record]:
        """Run one step: the best paths from the row of the pass before, one pass that verifies them."""
        draws, num_pending = UniformRow(uniforms, self.named_uniforms, trace), len(state.pending)
        drafts = self._best_paths(state)
        places = np.flatnonzero(drafts.used).tolist()
        real, _ = self._one_call(state, places, drafts.tokens[places[1:]])
        logits = dict(zip(places, self.model.logits(real), strict=True))
        walk = self._walk(state, drafts, logits, draws)
        rows = [places.index(place) for place in walk.path]
        state.cache.keep(len(state.tokens) - 1 + np.array(rows, dtype=np.int64), len(state.tokens))
        record = tree_record(drafting_record(num_pending - 1, 0), drafts, walk, draws)
        state, record = state.commit(record)
        return self._carry(state, real[rows[-1] if rows else 0], None), record

    def _best_paths(self, state: State) -> TreeDrafts:
        """Find the best paths; nothing follows a draft that ends the text."""
        rows = np.zeros((1, 0)) if state.lookahead_hidden is None else state.lookahead_hidden
        begun = self.refinement.start(self.model, rows) if len(rows) > 1 else ()
        beam: list[tuple[float, tuple[int, ...], Memory]] = [(0.0, (), begun)]
        for depth in range(len(rows) - 1):
            longer: list[tuple[float, tuple[int, ...], Memory]] = []
            for score, path, memory in beam:
                best: list[int] = []
                if len(path) == depth and not state.ends_with(path):
                    found, memory = self._scores(rows[1 + depth], (*state.tokens, *path), memory)
                    best = np.argsort(-found, kind="stable")[: min(self.num_paths, (found > -np.inf).sum())].tolist()
                longer += [(score + float(found[x]), (*path, x), memory) for x in best] or [(score, path, memory)]
            beam = sorted(longer, key=lambda each: -each[0])[: self.num_paths]
        used, tokens = np.arange(self.tree.num_drafts + 1) == 0, np.zeros(self.tree.num_drafts + 1, dtype=np.int64)
        for number, (_, path, _) in enumerate(beam):
            here = 1 + number + self.num_paths * np.arange(len(path))
            used[here], tokens[here] = True, path
        certain = np.broadcast_to(1.0, (used.size, self.model.vocab_size))  # as nothing was drawn
        return TreeDrafts(self.tree, used, tokens, certain)

    def _scores(self, row: Array, text: tuple[int, ...], memory: Memory) -> tuple[Array, Memory]:  # [V]
        """Return the scores of the next draft after text and path, and what the refinement remembers then."""
        found, memory = self.refinement.logits(self.model, row, text, memory)
        found = found if self.refinement.are_scores else log_probs(found)
        return np.round(found / STEP) * STEP, memory

    def _walk(self, state: State, drafts: TreeDrafts, logits: dict[int, Array], draws: UniformRow) -> Walk:
        """Draw token after token from the model, while a path continues with the drawn token."""
        accept = np.full(drafts.tokens.size, np.nan)
        path: list[int] = []
        log_probs: list[float] = []
        final_token: int | None = None
        alive, candidates = [0], list(self.tree.children[0])
        while not (path and state.ends_with(drafts.tokens[path].tolist())):
            probs = self.probs((*state.tokens, *drafts.tokens[path].tolist()), logits[alive[0]])
            candidates = [place for place in candidates if drafts.used[place]]
            accept[candidates] = probs[drafts.tokens[candidates]]
            token = draws.token("accept", probs, len(path)) if candidates else draws.token("final", probs)
            log_probs.append(float(np.log(probs[token])))
            alive = [place for place in candidates if drafts.tokens[place] == token]
            if not alive:
                final_token = token
                break
            path.append(alive[0])
            candidates = [child for place in alive for child in self.tree.children[place]]
        return Walk(path, log_probs, final_token, not candidates, accept, accept)
