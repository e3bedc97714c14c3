"""A Hugging Face folder, read by transformers."""

from __future__ import annotations

import os
from typing import Any

import torch

from ..files.folder import CONFIG, check_weights, file_in, open_folder
from ..precision import check_device, check_dtype

__all__ = ["load_with_transformers"]


def load_with_transformers(
    folder: str | os.PathLike[str],
    dtype: Any = None,
    device: torch.device | str = "cpu",
) -> Any:
    """Return the model in a folder as transformers has it, in eval mode; default dtype: the checkpoint's.

    Raises:
        FileNotFoundError: there is no such folder, or no config.json or no weights in it.
        ValueError: transformers cannot read it, the weights are no safetensors, or the device is not there.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    device, dtype = check_device(device), "auto" if dtype is None else check_dtype(dtype)
    root = open_folder(folder)
    file_in(root, CONFIG)
    check_weights(root)
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            str(folder), dtype=dtype, local_files_only=True, trust_remote_code=False, use_safetensors=True
        )
    except Exception as error:  # transformers raises anything here
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{folder} holds nothing for transformers ({reason}), expected a model that it reads"
        ) from None
    return model.eval().to(device)
