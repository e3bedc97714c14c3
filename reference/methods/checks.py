"""Checks of the settings of methods that draft by drafters, of either package."""

from __future__ import annotations

from typing import Any

from ..config import check_context, check_integer


def check_drafter(model: Any, drafter: Any, num_draft: int) -> None:
    """Raise ValueError unless the drafter drafts tokens of the model, and a number of them."""
    check_integer("num_draft", num_draft, 0, 2**16)
    if drafter.vocab_size != model.vocab_size:
        raise ValueError(
            f"drafter: found {drafter.name!r} with a vocabulary of {drafter.vocab_size}, expected {model.vocab_size} "
            f"as in the model {model.name!r}"
        )


def check_drafter_context(drafter: Any, prompt_length: int, max_new_tokens: int) -> None:
    """Raise ValueError unless prompt and new tokens fit into the drafter's context, if it has one."""
    if drafter.max_position_embeddings is not None:
        reader = f"the drafter {drafter.name!r}"
        check_context(prompt_length, max_new_tokens, drafter.max_position_embeddings, reader)


def check_lenience(lenience: float, rule: str) -> None:
    """Raise ValueError unless it is a number in (0, 1], and 1 for another rule than token."""
    if not 0 < lenience <= 1:
        raise ValueError(f"lenience: found {lenience!r:.80}, expected a number above 0 and at most 1")
    if lenience < 1 and rule != "token":
        raise ValueError(f"lenience: found {lenience} with the rule {rule!r}, expected the rule 'token'")
