"""Blockwise parallel decoding: heads on the last hidden state draft the next block, in the pass that verifies this one.

`reference.methods.blockwise` explains the method and names its source.
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
