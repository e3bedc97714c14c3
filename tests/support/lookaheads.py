"""Look-ahead vectors with random parts beside them, none trained; the same in both packages."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from folders import module

# What a look-ahead folder may hold: the rank of an adapter, the width of a head, and whether it drafts alone.
PARTS = {
    "vectors": (0, 0, False),
    "adapter": (2, 0, False),
    "head": (0, 5, False),
    "adapter and head": (3, 4, False),
    "head alone": (0, 5, True),
    "block heads": (0, 5, True),
}
on_parts = pytest.mark.parametrize("parts", PARTS)


def with_parts(package: str, model: Any, parts: str, num_lookahead: int = 3, seed: int = 0) -> Any:
    """Return a look-ahead for a model, its vectors of the size of what layers see."""
    rank, width, alone = PARTS[parts]
    vectors = module(package, "lookahead.vectors").LookAhead.random(num_lookahead, model.hidden_size, seed)
    adapter = module(package, "lookahead.adapter").Adapter.random(model.config, rank, seed) if rank else None
    head = module(package, "lookahead.head").SamplerHead.random(model.hidden_size, width, seed) if width else None
    head = head and replace(head, uses_lookahead=not alone)
    if parts == "block heads":
        heads = module(package, "lookahead.head").BlockHeads
        head = heads.random(model.hidden_size, width, num_lookahead, seed)
    return replace(vectors, vectors=50 * vectors.vectors, adapter=adapter, head=head)


def in_float64(package: str, part: Any) -> Any:
    """Return an adapter or a head, or None, in float64."""
    return part and part.to(np.float64 if package == "reference" else __import__("torch").float64)
