"""The shape of a model: frozen, and checked when it is made.

Field names are those of Hugging Face's config.json wherever one exists.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..config import set_integer, set_number


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched for contexts longer than the model was first trained on.

    Source: transformers, modeling_rope_utils.py (`linear`: every frequency divided by `factor`; `llama3`:
    only the slow ones, with a smooth passage between the two thresholds).
    """

    rope_type: str  # "linear" or "llama3"
    factor: float
    low_freq_factor: float = 1.0  # llama3: wavelengths above original / low are divided by factor
    high_freq_factor: float = 4.0  # llama3: wavelengths below original / high are left alone
    original_max_position_embeddings: int = 8192  # llama3: the context of the first training

    def __post_init__(self) -> None:
        """Refuse values for which the frequencies are not defined."""
        if self.rope_type not in ("linear", "llama3"):
            raise ValueError(f"rope_type: found {self.rope_type!r:.80}, expected 'linear' or 'llama3'")
        for name in ("factor", "low_freq_factor", "high_freq_factor"):
            set_number(self, name, above=0.0)
        set_integer(self, "original_max_position_embeddings", 1, 2**30)
        if self.low_freq_factor >= self.high_freq_factor:
            raise ValueError(
                f"low_freq_factor: found {self.low_freq_factor}, expected a number below "
                f"high_freq_factor {self.high_freq_factor}"
            )


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a Llama-like transformer."""

    vocab_size: int  # V
    hidden_size: int  # D
    intermediate_size: int  # F
    num_hidden_layers: int
    num_attention_heads: int  # H
    num_key_value_heads: int  # G
    head_dim: int  # E
    max_position_embeddings: int  # the context limit, in tokens
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    tie_word_embeddings: bool = False  # the output projection is the embedding
    attention_bias: bool = False  # biases on query, key and value
    attention_output_bias: bool = False  # a bias on the attention output
    query_key_norm: bool = False  # RMS norms on the heads of query and key (Qwen3)
    sliding_window: int | None = None  # to how many tokens a query attends, itself included
    sliding_layers: tuple[bool, ...] = ()  # which layers use the window; () means all

    def __post_init__(self) -> None:
        """Refuse sizes that no model has, before anything is allocated for them."""
        set_integer(self, "vocab_size", 1, 2**26)
        set_integer(self, "hidden_size", 1, 2**20)
        set_integer(self, "intermediate_size", 1, 2**22)
        set_integer(self, "num_hidden_layers", 1, 2**14)
        set_integer(self, "num_attention_heads", 1, 2**16)
        set_integer(self, "num_key_value_heads", 1, 2**16)
        set_integer(self, "head_dim", 2, 2**14)
        set_integer(self, "max_position_embeddings", 1, 2**30)
        set_number(self, "rms_norm_eps", above=0.0)
        set_number(self, "rope_theta", above=0.0)
        for name in ("tie_word_embeddings", "attention_bias", "attention_output_bias", "query_key_norm"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}: found {getattr(self, name)!r:.80}, expected true or false")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads: found {self.num_attention_heads}, expected a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim: found {self.head_dim}, expected an even number for the rotary embedding")
        if self.rope_scaling is not None and not isinstance(self.rope_scaling, RopeScaling):
            raise ValueError(f"rope_scaling: found {self.rope_scaling!r:.80}, expected a RopeScaling or None")
        self._check_window()

    def _check_window(self) -> None:
        if self.sliding_window is not None:
            set_integer(self, "sliding_window", 1, 2**30)
        layers = self.sliding_layers
        if not isinstance(layers, tuple) or not all(isinstance(used, bool) for used in layers):
            raise ValueError(f"sliding_layers: found {layers!r:.80}, expected a tuple of true or false, one per layer")
        if layers and self.sliding_window is None:
            raise ValueError("sliding_layers is given without a sliding_window, expected both or neither")
        if layers and len(layers) != self.num_hidden_layers:
            raise ValueError(
                f"sliding_layers has {len(layers)} entries, expected one for each of the "
                f"{self.num_hidden_layers} layers"
            )

    def window(self, layer: int) -> int | None:
        """Return to how many tokens a query of this layer attends, itself included; None means no limit."""
        return self.sliding_window if not self.sliding_layers or self.sliding_layers[layer] else None
