"""Run the transformers library in float64 throughout: the truth that other dtypes are measured against.

The library computes its norms, rotary tables and attention weights in float32 whatever the dtype of the model. Here its
own code runs, but every request for float32 becomes one for float64.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM, PreTrainedModel


class Float64Mode(TorchFunctionMode):
    """Within this context, whoever asks PyTorch for float32 gets float64."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.float:
            return args[0].double()
        args = tuple(_widened(value) for value in args)
        return func(*args, **{name: _widened(value) for name, value in (kwargs or {}).items()})


def _widened(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value


def build(config: Any) -> PreTrainedModel:
    """Return a model with the library's initial weights, wholly in float64."""
    with Float64Mode():
        return _checked(AutoModelForCausalLM.from_config(config, dtype=torch.float64))


def load(folder: Path, dtype: torch.dtype = torch.float64, attention: str = "eager") -> PreTrainedModel:
    """Return the library's model of a folder, in float64 wholly so."""
    if dtype is torch.float64:
        with Float64Mode():
            return _checked(_load(folder, dtype, attention))
    return _load(folder, dtype, attention)


def logits(model: PreTrainedModel, tokens: np.ndarray) -> np.ndarray:  # [T] -> [T, V]
    """Return the library's logits in float64: computed in it where the model is in it, else converted at the end."""
    batch = torch.as_tensor(tokens).unsqueeze(0)
    with torch.no_grad():
        if model.dtype is not torch.float64:
            return model(batch, use_cache=False).logits[0].double().numpy()
        with Float64Mode():
            found = model(batch, use_cache=False).logits[0]
    assert found.dtype is torch.float64
    return found.numpy()


def _load(folder: Path, dtype: torch.dtype, attention: str) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation=attention).eval()


def _checked(model: PreTrainedModel) -> PreTrainedModel:
    """Return the model, none of whose parameters and rotary frequencies is in float32."""
    assert {tensor.dtype for tensor in (*model.parameters(), *model.buffers())} == {torch.float64}
    return model.eval()
