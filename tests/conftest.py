"""Settings of the whole suite: property-test profiles, no network, and which tests need what."""

import os
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"  # no test may reach the network
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models: threads that wait for each other cost more than they do

KEPT = tempfile.TemporaryDirectory(prefix="pass-sampling-tests-", ignore_cleanup_errors=True)
os.environ["XDG_CACHE_HOME"] = os.environ["LOCALAPPDATA"] = KEPT.name  # where plans are kept: not the user's

PLAIN = settings.get_profile("default")  # without what Hypothesis changes by itself where it sees a CI server
settings.register_profile("dev", PLAIN, max_examples=50, deadline=None)
settings.register_profile("ci", settings.get_profile("dev"), derandomize=True, database=None, print_blob=True)
settings.register_profile("deep", settings.get_profile("dev"), max_examples=5000)
settings.load_profile("ci" if os.environ.get("CI") else "dev")

# Files that `make test` leaves to `make check`; the suite and the gallery, which stay, find most of their mistakes.
LONG = """
    anchors bench_commands bundled_model cache_machine checkpoint commands_process draft_vocab end_to_end
    huggingface huggingface_distribution model_check overflow pass_one_call registry resume shapes speculative theory
    tree tree_bundled
""".split()

MISSING = [name for name in ("torch", "transformers", "tokenizers") if find_spec(name) is None]
REASON = f"needs the gpu extra: {' and '.join(MISSING)} not installed"
if MISSING:
    import pass_sampling.reference  # noqa: F401  (works without the extra, or else everything would be skipped)


class PortTests(pytest.Module):
    """A test file where the gpu extra is missing: skipped as a whole if it imports what is not there."""

    def collect(self) -> list[pytest.Item | pytest.Collector]:
        try:
            return list(super().collect())
        except self.CollectError as error:
            if any(isinstance(cause, ModuleNotFoundError) and cause.name in MISSING for cause in _causes(error)):
                pytest.skip(f"{self.path.name} {REASON}", allow_module_level=True)
            raise


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    return PortTests.from_parent(parent, path=module_path) if MISSING else None


@pytest.hookimpl(tryfirst=True)  # before -m leaves out what is marked
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.stem.removeprefix("test_") in LONG:
            item.add_marker("check")
    # The longest first: a worker without work takes tests from the end of another's list, where the short ones are.
    items.sort(key=lambda item: item.path.stem.removeprefix("test_") not in (*LONG, "suite", "gallery"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip here, and not by a marker on each test, so that the summary folds all of a kind into one line."""
    if MISSING and (item.get_closest_marker("torch") or item.get_closest_marker("gpu")):
        pytest.skip(REASON)
    if item.get_closest_marker("gpu") and not _has_cuda():
        pytest.skip("needs a CUDA device, and there is none")


@pytest.fixture(scope="session")
def box(tmp_path_factory: pytest.TempPathFactory) -> object:
    """A small model with a tokenizer, vectors and text, for the command line; built once."""
    if MISSING:
        pytest.skip(REASON)
    from console import build_box

    return build_box(tmp_path_factory.mktemp("box"))


@pytest.fixture(params=("reference", "gpu"))
def pkg(request: pytest.FixtureRequest) -> object:
    """Run a test on both packages: one of them."""
    from models import package

    return package(request.param)


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()
