"""Written steps, compiled by PyTorch's own compiler into packages that are kept on disk.

A package is named after all that it is made of: the operations, the weights in them, PyTorch, the processor and the
number of threads. So one that is there is never stale. It holds native code: packages are read from the user's own
cache folder alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from ..files.cache_folder import cache_folder

__all__ = ["Call", "compiled_package"]

Call = Callable[..., list[Tensor]]
MOST_KEPT = 2**32  # bytes of packages
OPTIONS = {
    "freezing": True,  # weights are laid out for the processor's units
    "max_autotune": True,  # of matrix products, the quickest code for each
    "max_autotune_gemm_backends": "CPP,ATEN",
}


def compiled_package(graph: GraphModule, examples: list[Tensor], begins: Callable[[], Any] = bool) -> Call:
    """Return a function that runs a written step; it is compiled the first time, for a minute or so.

    `begins` is called before that.

    Raises:
        Exception: of many kinds, where it cannot be compiled.
    """
    path = cache_folder("compiled") / f"{_digest(graph, examples)}.pt2"
    for again in (True, False):
        if not path.is_file():
            begins()
            _compile(graph, examples, path)
            _forget_oldest(path)
        with contextlib.suppress(OSError):
            os.utime(path)
        try:
            return _call_of(torch._inductor.aoti_load_package(str(path)))
        except Exception:  # damaged: it is made again, once
            if not again:
                raise
            path.unlink(missing_ok=True)
    raise AssertionError("unreachable")


def _compile(graph: GraphModule, examples: list[Tensor], path: Path) -> None:
    """Compile a written step into a package, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder, _quietly(), torch.no_grad():
        exported = torch.export.export(graph, tuple(examples), strict=False)
        made = torch._inductor.aoti_compile_and_package(
            exported,
            package_path=str(Path(folder) / "step.pt2"),
            inductor_configs=dict(OPTIONS),  # which it adds to
        )
        os.replace(made, path)


def _call_of(package: Any) -> Call:
    def call(*inputs: Tensor) -> list[Tensor]:
        found: list[Tensor] = package.loader.run(list(inputs))
        return found

    return call


def _digest(graph: GraphModule, examples: list[Tensor]) -> str:
    """Return what tells a package from all others."""
    digest = hashlib.sha256(graph.code.encode())
    for tensor in (*examples, *graph.buffers()):
        digest.update(f"{tuple(tensor.shape)} {tensor.stride()} {tensor.dtype}".encode())
    for tensor in graph.buffers():
        digest.update(tensor.detach().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    digest.update(f"{torch.__version__} {torch.get_num_threads()} {sorted(OPTIONS.items())}".encode())
    digest.update(f"{torch.backends.cpu.get_cpu_capability()} {_processor()}".encode())
    return digest.hexdigest()[:40]


def _processor() -> str:
    """Return what the processor can do, where the system says it."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        return next((line for line in file if line.startswith(("flags", "Features"))), "")
    return ""


def _forget_oldest(kept: Path) -> None:
    """Remove the packages that nobody has asked for the longest, until all that are left are of a bearable size."""
    size = 0
    with contextlib.suppress(OSError):  # others may be at it
        packages = [(path.stat().st_mtime, path.stat().st_size, path) for path in kept.parent.glob("*.pt2")]
        for _, each, path in sorted(packages, reverse=True):
            size += each
            if size > MOST_KEPT and path != kept:
                path.unlink(missing_ok=True)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keep the compiler's remarks from the user's terminal."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
