"""One file per published algorithm, each a step that reads like its paper; `METHODS` has them all by name.

A method that is registered here is found by the exact suite, the coupling tests, the benchmark and the command line. A
method whose name ends in `-tree` drafts a tree where the method without the ending drafts a chain.
"""

from ..model.language_model import LanguageModel
from .autoregressive import Autoregressive
from .base import Method
from .blockwise import Blockwise, BlockwisePaths
from .pass_one_call import PaSSOneCall
from .pass_two_call import PaSS
from .speculative import SpeculativeSampling
from .tree import PaSSOneCallTree, SpeculativeTree

__all__ = ["METHODS", "Autoregressive", "Blockwise", "BlockwisePaths", "LanguageModel", "Method", "PaSS", "PaSSOneCall"]
__all__ += ["PaSSOneCallTree", "SpeculativeSampling", "SpeculativeTree", "rules_of"]

METHODS: dict[str, type[Method]] = {
    "autoregressive": Autoregressive,
    "pass": PaSS,
    "pass-one-call": PaSSOneCall,
    "pass-one-call-tree": PaSSOneCallTree,
    "blockwise": Blockwise,
    "blockwise-paths": BlockwisePaths,
    "speculative": SpeculativeSampling,  # with any drafter
    "speculative-tree": SpeculativeTree,
}


def rules_of(name: str) -> tuple[str, ...]:
    """Return the rules by which a method can verify its drafts, its default first."""
    return tuple(getattr(METHODS[name], "rules", ()))
