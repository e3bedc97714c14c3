"""What the gallery's entries are made of: a defect, the small model under which it shows, and where it is put."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module
from typing import Any

import numpy as np
import pytest

from folders import module
from models import package
from pass_sampling.reference.exactness.cases import PROMPT, Configuration, configurations
from pass_sampling.reference.exactness.distribution import OutputDistribution, output_distribution
from pass_sampling.reference.exactness.suite import definition

CASES = {case.name: case for case in configurations(every=False)}  # what `pass-sampling verify` runs by default
TABLE = Configuration("a table", seed=44, zeros=0.0, spread=2.0, max_new_tokens=6)  # a second drafted step is verified
COMMON = "a common mistake"
REVIEW = "a review of this project"
REFUSAL = re.compile(  # by our own code, of a defect that it notices; any other error would be the gallery's
    "serves? two decisions|the outcome whose cell holds it|the edges that the step decides by|before its text had ended"
    "|a step that tracing does not change|a pure function of each row"
)


class Site:
    """Where a defect is put: a package whose functions are replaced for a while."""

    def __init__(self, name: str, monkeypatch: pytest.MonkeyPatch, late: bool = False):
        """Put defects into a package, at work in every step or, if `late`, from a sequence's second on."""
        self.pkg = package(name)
        self.name, self.late = name, late
        self.single = name == "reference"
        self.xp: Any = np if self.single else import_module("torch")
        self.second_step = self.drafting = False
        self.passes = self.cuts = 0  # of the step that runs now
        self.num_written: Any = 0  # new tokens before the step that runs now; [B, 1] in the port
        self.monkeypatch = monkeypatch

    @property
    def at_work(self) -> bool:
        """Say whether the mistake is made now."""
        return self.second_step or not self.late

    def module(self, name: str) -> Any:
        """Return one of the package's modules."""
        return module(self.name, name)

    @property
    def state(self) -> Any:
        """The package's class of states."""
        return self.module("methods.base" if self.single else "state").State

    def wrong(self, home: Any, name: str, wrong: Callable[..., Any]) -> None:
        """Replace a function by a wrong one that is handed the right one first, while the mistake is made."""
        home = self.module(home) if isinstance(home, str) else home
        is_table = isinstance(home, dict)
        right = home[name] if is_table else getattr(home, name)

        def either(*args: Any, **options: Any) -> Any:
            return wrong(right, *args, **options) if self.at_work else right(*args, **options)

        (self.monkeypatch.setitem if is_table else self.monkeypatch.setattr)(home, name, either)

    def wrong_rows(self, change: Callable[..., tuple[Any, Any]], accept: bool = True) -> None:
        """Hand the token rule other distributions; without `accept`, the chances of acceptance stay as they were.

        `change(target, draft, tokens, count, last)` is told how many drafts there are and which row of the target is
        the last that means something: rows of a batch are padded.
        """
        verify, kept = self.module("verify"), []
        right_chances = verify.accept_probs

        def rule(right: Any, target: Any, draft: Any, tokens: Any, draws: Any, *rest: Any) -> Any:
            kept[:] = [] if accept else [right_chances(target, draft, tokens)]
            if rest:
                count, has_bonus_row = rest[0][:, None], rest[1][:, None]
                last = (count - ~has_bonus_row * 1).clip(min=0)
            else:
                count, last = len(tokens), len(target) - 1
            return right(*change(target, draft, tokens, count, last), tokens, draws, *rest)

        self.wrong(verify.RULES, "token", rule)
        if not accept:
            self.wrong(verify, "accept_probs", lambda right, *distributions: kept[0])

    def take(self, rows: Any, index: Any) -> Any:
        """Return the rows of distributions at the given places, of each row of a batch."""
        if self.single:
            return rows[index]
        return rows.gather(1, index[..., None].expand(*index.shape, rows.shape[-1]))

    def pass_type(self) -> type:
        """Return a PaSS that keeps account, for the defects, of where in a text and in a step it is."""
        site = self

        class Mutant(self.pkg.PaSS):  # type: ignore[name-defined,misc]
            def step(self, state: Any, uniforms: Any, trace: bool = False) -> Any:
                site.num_written = _num_written(state)
                site.second_step = bool(np.any(np.asarray(site.num_written > 0)))
                site.passes = site.cuts = 0
                return super().step(state, uniforms, trace)

            def _draft(self, *args: Any) -> Any:
                site.drafting = True
                try:
                    return super()._draft(*args)
                finally:
                    site.drafting = False

        return Mutant

    def method(self, case: Configuration) -> Any:
        """Return PaSS over a configuration's model."""
        right = case.method(self.pkg, "pass", "token")
        settings = right.sampling, right.draft_sampling, right.rule, right.processor
        return self.pass_type()(right.model, right.lookahead, *settings)

    def one_hot(self, tokens: Any, like: Any) -> Any:
        """Return the distributions, of the size of others, that give one token each probability 1."""
        return (self.xp.arange(like.shape[-1]) == tokens[..., None]) * (like[..., :1] * 0 + 1)

    def argmax_distribution(self, probs: Any) -> Any:
        """Return the distribution of the likeliest token."""
        return self.one_hot(probs.argmax(-1), probs)

    def bfloat16(self, probs: Any) -> Any:
        """Round to bfloat16 and back."""
        if self.single:
            return probs.astype(import_module("ml_dtypes").bfloat16).astype(np.float64)
        return probs.to(self.xp.bfloat16).double()


def _num_written(state: Any) -> Any:
    """Return how many new tokens a state has, in a column for the rows of a batch."""
    if hasattr(state, "lengths"):
        return (state.lengths - state.prompt_lengths).unsqueeze(1)
    return len(state.tokens) - state.prompt_length


PLACES: dict[str, Callable[[Site], tuple[Any, str]]] = {  # functions of a package that are replaced by wrong ones
    "residual": lambda site: ("verify", "residual_probs"),
    "chances": lambda site: ("verify", "accept_probs"),
    "rule": lambda site: (site.module("verify").RULES, "token"),
    "acceptance": lambda site: (site.module("uniforms").UniformRow, "accept"),
    "draws": lambda site: (site.module("uniforms").UniformRow, "token" if site.single else "tokens"),
    "streams": lambda site: ("generation", "uniform_stream" if site.single else "uniform_streams"),
    "drafts": lambda site: (site.pkg.PaSS, "_draft"),
    "target": lambda site: (site.pkg.PaSS, "chain_probs"),
    "records": lambda site: ("methods.base" if site.single else "methods.records", "verified_record"),
    "rollback": lambda site: (site.module("model.cache").KVCache, "truncate"),
    "cache": lambda site: (site.module("model.cache").KVCache, "write"),
}


@dataclass(frozen=True)
class Defect:
    """One real bug as a small mutation of our own code, and what sees it: the exact distribution, or a check."""

    name: str
    source: str
    what: str
    put: Callable[[Site], None]
    case: Configuration = TABLE
    check: Callable[[Site], None] | None = None  # passes on the right code, fails on the wrong
    distribution: str = "wrong"  # or "exact", though it is a bug; or "refused" by the enumeration; or "beside" the step
    at_least: float = 1e-3  # total variation, at work in every step
    at_least_late: float = 1e-3  # at work from the second step on
    merge: bool = True  # False where states differ after the same tokens
    alike: bool = True  # False where a batch's padding, which the reference does not have, is hit as well
    packages: tuple[str, ...] = ("reference", "gpu")

    @property
    def seen_by(self) -> str:
        """Name what sees it."""
        distribution = f"distribution of “{self.case.name}”" if self.case.name in CASES else "distribution"
        return distribution if self.check is None else self.check.__name__.replace("_", " ")


def defects(entries: list[Defect]) -> Callable[..., Any]:
    """Return a decorator that adds defects to a list: `@defect(source, place, name, **other fields of the entry)`.

    It decorates a function that puts a defect into a site; or a wrong function, which takes the site first. The latter
    is put into one of `PLACES`, and takes the right function second; or it is put where `place(site, wrong)` puts it.
    The name of the entry is that of the function, and what goes wrong is its docstring.
    """

    def defect(source: str, place: Any = None, name: str | None = None, **fields: Any) -> Any:
        def decorate(function: Callable[..., Any]) -> Callable[[Site], None]:
            def put(site: Site) -> None:
                if place is None:
                    function(site)
                elif callable(place):
                    place(site, partial(function, site))
                else:
                    site.wrong(*PLACES[place](site), partial(function, site))

            what = " ".join(str(function.__doc__).split()).removesuffix(".").replace("|", r"\|")
            what = what[0].lower() + what[1:]
            entries.append(Defect(name or function.__name__.replace("_", " "), source, what, put, **fields))
            return put

        return decorate

    return defect


@cache
def distribution_of(
    defect: Defect | None, name: str, case: Configuration, late: bool = False, merge: bool = True
) -> OutputDistribution:
    """Return what comes out of PaSS with a defect put in, or with none."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        site = Site(name, monkeypatch, late)
        method = site.method(case)
        if defect is not None:
            defect.put(site)
        with np.errstate(all="ignore"):  # what should have probability 0 has a logarithm in some of the records
            return output_distribution(method, PROMPT, case.ending(site.pkg), merge=merge)


def damage(defect: Defect, name: str = "reference", late: bool = False, case: Configuration | None = None) -> float:
    """Return the total variation between the target's distribution and what comes out with a defect at work."""
    case = defect.case if case is None else case
    return distribution_of(defect, name, case, late, defect.merge).total_variation(definition(case))


def passes_check(defect: Defect, name: str, at_work: bool) -> bool:
    """Say whether a defect's check passes, on the right code or with the defect put in."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        site = Site(name, monkeypatch)
        if at_work:
            defect.put(site)
        try:
            with np.errstate(all="ignore"):
                defect.check(site)
        except AssertionError:
            if not at_work:
                raise  # the check itself is wrong, and its own words say more
            return False
        except (ValueError, RuntimeError) as error:
            if not at_work or not REFUSAL.search(str(error)):
                raise
            return False
        return True
