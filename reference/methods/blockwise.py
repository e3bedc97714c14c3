"""Blockwise parallel decoding: heads on the last hidden state draft the next block, in the pass that verifies this one.

With t tokens of text, a step is

    predict   draft_i ~ head_i(hidden_t), i = 1 ... K, from the pass of the step before
    verify    one pass over the pending token and the drafts; row i is the model's distribution after i drafts
    accept    as many drafts as the rule allows, and the token after them from the model itself

The last accepted row of the pass is what the heads draft from next, so drafting takes no pass of its own. Greedy, by
the rule `match`, a step is that of the paper. With other settings the drafts are verified as any others are, so the
text has the model's distribution.

The paper also trains the model together with its heads, and accepts drafts that are merely near the likeliest token.
Here the model is frozen, and every rule is exact.

Source: Stern et al. 2018 (arXiv 1811.03115), Sec. 3 and 4 (predict, verify and accept, merged into one pass).
"""

from __future__ import annotations

from dataclasses import dataclass

from .pass_one_call import PaSSOneCall

__all__ = ["Blockwise"]


@dataclass(frozen=True, eq=False)
class Blockwise(PaSSOneCall):
    """Verify a block of drafts and draft the next one by heads, in one pass without look-ahead rows."""

    def __post_init__(self) -> None:
        """Check the settings; see `OneCall`.

        Raises:
            ValueError: what refines the drafts needs look-ahead rows, or reads the drafts before.
        """
        super().__post_init__()
        if self.refinement.uses_lookahead or self.refinement.reads_drafts:
            raise ValueError("lookahead: found parts that are no block heads, expected some for blockwise decoding")
