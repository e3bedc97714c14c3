"""Look-ahead vectors under the names of the Hub: save_pretrained, from_pretrained, push_to_hub."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, cast

from pass_sampling.reference.checkpoint.lookahead_folder import CARD

from .card import model_card
from .hub import is_repository, upload_folder

if TYPE_CHECKING:
    import torch

    from ..lookahead.vectors import LookAhead

__all__ = ["Pretrained"]


class Pretrained:
    """What LookAhead can do beside `save` and `load`."""

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write a look-ahead folder with a model card; a card that is there already is kept.

        Raises:
            ValueError: the path holds something else, or `training` is no plain JSON.
        """
        lookahead, path = cast("LookAhead", self), Path(folder)
        lookahead.save(path, None if (path / CARD).is_file() else model_card(lookahead, path.resolve().name))

    @classmethod
    def from_pretrained(
        cls,
        folder: str | os.PathLike[str],
        device: torch.device | str = "cpu",
        revision: str | None = None,
    ) -> LookAhead:
        """Read a look-ahead folder, or one on the Hub: `load` under the name that is usual there."""
        return cast("type[LookAhead]", cls).load(folder, device, revision)

    def push_to_hub(
        self,
        repository: str,
        private: bool | None = None,
        token: str | None = None,
        commit_message: str = "Upload look-ahead vectors",
    ) -> str:
        """Upload a look-ahead folder with a model card, and return its address; a card that is there already stays.

        Args:
            repository: as `user/name`; made if there is none.
            private: whether only its owner sees a new one; default: as the account's settings say.
            token: of an account that may write; default: the one that is logged in.
            commit_message: what the history says of it.

        Raises:
            ValueError: that is no name of a repository, or the Hub does not take it.
        """
        if not is_repository(repository) or "@" in repository:
            raise ValueError(f"repository: found {repository!r:.80}, expected user/name")
        lookahead = cast("LookAhead", self)
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "vectors"
            lookahead.save(folder, model_card(lookahead, repository))
            return upload_folder(folder, repository, private, token, commit_message)
