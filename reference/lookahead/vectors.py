"""The look-ahead vectors: what PaSS trains, and the folder that keeps them."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from ..checkpoint import lookahead_folder as disk
from ..checkpoint.folder import errors_of, read_folder, save_folder
from ..config import SamplingConfig, check_integer
from ..model.language_model import LanguageModel
from ..model.layers import Array
from .adapter import Adapter, sizes_of, tensor_shapes
from .head import BlockHeads, SamplerHead


@dataclass(frozen=True, eq=False)
class TrainedVectors:
    """Look-ahead vectors of either package: the fields, the check against a model, and config.json."""

    vectors: Any  # [L, D]
    base_model: str = ""  # the name of the model they were trained for
    base_shapes: Mapping[str, int] = field(default_factory=dict)  # its sizes, under config.json's names
    fingerprint: str | None = None  # its fingerprint; None: not known, so not checked
    sampling: SamplingConfig | None = None  # the sampling they were trained for
    training: Mapping[str, Any] = field(default_factory=dict)  # how they were trained, free of form
    adapter: Any = None  # the terms that look-ahead rows add to the model's linear layers
    head: Any = None  # the network that conditions drafts on one another
    draft_vocab: Any = None  # [N], the tokens that drafts are among, in the order of their ids; None: all
    kinds: ClassVar[tuple[Any, Mapping[str, Any]]]  # the package's class of adapters, and those of heads by kind

    @classmethod
    def random(cls, num_lookahead: int, hidden_size: int, seed: int) -> Self:
        """Draw untrained vectors of the size of ordinary embeddings; raise ValueError for numbers out of range."""
        check_integer("num_lookahead", num_lookahead, 0, 2**16)
        check_integer("hidden_size", hidden_size, 1, 2**20)
        check_integer("seed", seed, 0, 2**64 - 1)
        return cls(0.02 * np.random.default_rng(seed).standard_normal((num_lookahead, hidden_size)))

    @property
    def num_lookahead(self) -> int:
        """Return how many vectors there are, L."""
        return int(self.vectors.shape[0])

    @property
    def hidden_size(self) -> int:
        """Return the width of a vector, D."""
        return int(self.vectors.shape[1])

    def check(self, model: Any) -> None:
        """Raise ValueError for a model of another width or fingerprint; without one they fit every model."""
        if self.hidden_size != model.hidden_size:
            raise ValueError(
                f"the look-ahead vectors have hidden_size {self.hidden_size}, "
                f"expected {model.hidden_size} as in the model {model.name!r}"
            )
        if self.draft_vocab is not None and int(self.draft_vocab[-1]) >= model.vocab_size:
            raise ValueError(
                f"draft_vocab: found the token {int(self.draft_vocab[-1])}, expected 0 to {model.vocab_size - 1}, the "
                "model's"
            )
        if self.adapter is not None:
            config = getattr(model, "config", None)
            expected = {} if config is None else tensor_shapes(sizes_of(config), self.adapter.rank)
            if {name: tuple(each.shape) for name, each in self.adapter.matrices.items()} != expected:
                raise ValueError(
                    f"the look-ahead adapter has the shapes of another model, expected those of {model.name!r}"
                )
        if self.fingerprint is not None and model.fingerprint not in (None, self.fingerprint):
            raise ValueError(
                f"the look-ahead vectors were trained for the model {self.base_model!r} "
                f"({self.fingerprint[:12]}), this is {model.name!r} ({str(model.fingerprint)[:12]}), "
                f"expected the same; other vectors keep the text exact but make it slow, and "
                f"dataclasses.replace(lookahead, fingerprint=None) skips this check"
            )

    def _check_numbers(self) -> None:
        """Raise ValueError unless the vectors have two axes, and they and the other parts are finite."""
        if self.vectors.ndim != 2 or self.vectors.shape[1] == 0:
            raise ValueError(f"vectors has shape {list(self.vectors.shape)}, expected [num_lookahead, hidden_size]")
        for what, arrays in (("vectors", [self.vectors]), ("adapter or head", self._parts().values())):
            if not all(bool((abs(array) < math.inf).all()) for array in arrays):
                raise ValueError(f"{what} holds NaN or infinity, expected finite numbers")

    def _checked_number(self, model: Any, num_lookahead: int | None) -> int:
        """Return how many vectors are wanted of a model that they were trained for."""
        wanted = self.num_lookahead if num_lookahead is None else num_lookahead
        check_integer("num_lookahead", wanted, 0, self.num_lookahead)
        self.check(model)
        return wanted

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write a look-ahead folder, whole or not at all; one that exists is replaced.

        Raise ValueError if the path holds something else, or `training` is not plain JSON.
        """
        head = self.head
        settings = {
            "adapter_rank": 0 if self.adapter is None else self.adapter.rank,
            "refine": head and {"kind": head.kind, "width": head.width, "alone": not head.uses_lookahead},
            "num_lookahead": self.num_lookahead,
            "hidden_size": self.hidden_size,
            "sampling": None if self.sampling is None else asdict(self.sampling),
            "base_model": {"name": self.base_model, "shapes": dict(self.base_shapes), "fingerprint": self.fingerprint},
            "training": dict(self.training),
        }
        save_folder(folder, disk.FOLDER, disk.FIXED, settings, self._packed())

    def _packed(self) -> bytes:
        """Return the content of model.safetensors."""
        raise NotImplementedError

    def _parts(self) -> dict[str, Any]:
        """Return the tensors of adapter and head under the names that they are stored by."""
        parts = [(disk.ADAPTER, self.adapter), (disk.HEAD, self.head)]
        return {begin + name: each for begin, part in parts if part for name, each in part.matrices.items()}

    @classmethod
    def _read(cls, folder: str | os.PathLike[str], convert: Callable[[Any], Any]) -> Self:
        """Read a look-ahead folder; `convert` makes a package's own tensors of arrays."""
        settings, details, path = read_folder(folder, disk.read_details)
        tensors = {name: convert(array) for name, array in disk.read_tensors(path, settings).items()}
        adapter, head = (
            {name.removeprefix(begin): each for name, each in tensors.items() if name.startswith(begin)}
            for begin in (disk.ADAPTER, disk.HEAD)
        )
        details["adapter"] = cls.kinds[0](adapter) if adapter else None
        refine = settings["refine"]
        details["head"] = cls.kinds[1][refine["kind"]](head, not refine["alone"]) if head else None
        details["draft_vocab"] = tensors.get(disk.DRAFT_VOCAB)
        with errors_of(path):
            return cls(tensors[disk.TENSOR], **details)


def check_draft_vocab(tokens: Any) -> npt.NDArray[np.int64]:  # [N]
    """Return the tokens of a draft vocabulary; raise ValueError unless they are token ids in ascending order."""
    found = np.asarray(tokens)
    integers = np.issubdtype(found.dtype, np.integer) and found.ndim == 1 and found.size > 0
    if not integers or found[0] < 0 or (np.diff(found) <= 0).any():
        raise ValueError("draft_vocab: found something else, expected token ids in ascending order, each once")
    return found.astype(np.int64)


@dataclass(frozen=True, eq=False)
class LookAhead(TrainedVectors):
    """Look-ahead vectors in the space of `inputs_embeds`, and the model that they were trained for."""

    vectors: npt.NDArray[np.float32]  # [L, D]
    adapter: Adapter | None = None
    head: SamplerHead | BlockHeads | None = None
    kinds = Adapter, {"head": SamplerHead, "block": BlockHeads}

    def __post_init__(self) -> None:
        """Hold the vectors in float32, and the other parts as they are stored."""
        with np.errstate(over="ignore"):
            vectors = np.array(self.vectors, dtype=np.float32)
        vectors.flags.writeable = False
        object.__setattr__(self, "vectors", vectors)
        if self.draft_vocab is not None:
            object.__setattr__(self, "draft_vocab", np.array(check_draft_vocab(self.draft_vocab)))
        for name in ("adapter", "head"):
            part = getattr(self, name)
            object.__setattr__(self, name, part and part.to(disk.bfloat16()).to(np.float32))
        self._check_numbers()

    def inputs(self, model: LanguageModel, num_lookahead: int | None = None) -> Array:  # [L, D]
        """Return the first `num_lookahead` vectors (default: all) as input vectors of a model, in its dtype.

        Raise ValueError if they were trained for another one, are fewer, or too large for the dtype.
        """
        wanted = self._checked_number(model, num_lookahead)
        with np.errstate(over="ignore"):
            vectors = self.vectors[:wanted].astype(model.embed([0]).dtype)
        if not np.isfinite(vectors).all():
            raise ValueError(f"lookahead: found vectors too large for {vectors.dtype}, expected a wider dtype")
        return vectors

    def _packed(self) -> bytes:
        """Return the content of model.safetensors."""
        from safetensors.numpy import save

        tensors = {name: array.astype(disk.bfloat16()) for name, array in self._parts().items()}
        if self.draft_vocab is not None:
            tensors[disk.DRAFT_VOCAB] = self.draft_vocab.astype(np.int32)
        return save({**tensors, disk.TENSOR: np.ascontiguousarray(self.vectors)})

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> LookAhead:
        """Read a folder; raise FileNotFoundError for a missing file, ValueError for a damaged or another version's."""
        return cls._read(folder, np.asarray)
