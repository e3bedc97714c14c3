"""The page of a decoding shows what its records hold: every token, every uniform, every row of every pass."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pass_sampling.reference as reference
from models import PACKAGES, package, transformer
from pass_sampling.reference.exactness import cases
from pass_sampling.reference.text.token_decoder import Piece, TokenDecoder
from pass_sampling.reference.text.trace import Traced, trace_page

NAMES = ("table, temperature 1", "table, many zeros", "table, 80 tokens", "transformer, all three", "table, greedy")
CASES = [case for case in cases.configurations() if case.name in NAMES]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason=f"needs a browser: none of {', '.join(BROWSERS)} found")


def traced(
    method: Any, name: str = "", prompt: Any = (1, 0), length: int = 9, seed: int = 3, **settings: Any
) -> Traced:
    """Decode with a method of either package; a method of the reference also gives its target's rows."""
    pkg = package(type(method).__module__.split(".")[1])
    found = pkg.generate(method, prompt, length, seed=seed, request=2, trace=True, **settings)
    rows: Any = ()
    if pkg is reference:
        tokens = [*prompt, *found.tokens]
        hidden = method.model.hidden(method.model.embed(tokens), method.model.new_cache(len(tokens)))
        rows = method.chain_probs(prompt, np.array(found.tokens), method.model.logits(hidden[len(prompt) - 1 : -1]))
    return Traced(name, method, found, seed, 2, rows)


def content(page: str) -> Any:
    """Return what a page shows, read as a browser does: up to the first end of a script."""
    (found,) = re.findall(r'<script type="application/json" id="trace">(.*?)</script>', page, re.DOTALL)
    return json.loads(found)


def near(one: Any, other: float) -> bool:
    return (one is None and np.isnan(other)) or one == pytest.approx(other, rel=1e-4, abs=1e-12)


def check_draw(draw: Any) -> None:
    """The uniform is in the cell of the token that was drawn, and the likeliest tokens are in order."""
    cells = [draw["top"][i : i + 3] for i in range(0, len(draw["top"]), 3)]
    (low, high) = next((low, low + prob) for token, prob, low in cells if token == draw["token"])
    assert low - 2e-5 <= draw["uniform"] <= high + 2e-5
    probs = [prob for _, prob, _ in cells]
    assert probs == sorted(probs, reverse=True) and 0 < min(probs) and sum(probs) < 1 + 1e-4


@pytest.mark.parametrize("name", PACKAGES)
@pytest.mark.parametrize(("method", "rule"), cases.methods_of(reference), ids=lambda each: each or "-")
def test_the_page_of_every_method_shows_what_the_records_hold(name: str, method: str, rule: str | None) -> None:
    num_drafts = 0
    for case in CASES:
        running = case.suited(method).method(package(name), method, rule)
        made = traced(running, method)
        found = content(trace_page([made]))
        (run,) = found["runs"]
        assert len(run["steps"]) == len(made.generation.records)
        shown = [found["ids"][token] for step in run["steps"] for token in step["tokens"]]
        assert shown == list(made.generation.tokens) and len(run["pieces"]) == len(shown)
        for step, record in zip(run["steps"], made.generation.records, strict=True):
            assert step["sources"] == [source[0] for source in record.sources]
            assert [found["ids"][each["token"]] for each in step["drafts"]] == list(record.draft_tokens)
            outcomes = [draft.get("outcome") for draft in step["drafts"]]
            twice = len(set(zip(record.draft_parents, record.draft_tokens, strict=False)))  # paths may share drafts
            assert outcomes.count("accepted") == record.num_accepted or twice < len(record.draft_parents)
            assert outcomes.count("accepted") >= record.num_accepted
            for i, draft in enumerate(step["drafts"]):
                num_drafts += 1
                if "outcome" not in draft:
                    continue
                assert near(draft["draft"], record.draft_token_probs[i])
                assert near(draft["target"], record.target_token_probs[i]), (i, draft)
                assert near(draft["accept"], record.accept_probs[i])
                if "uniform" in draft and draft["uniform"] != draft["accept"]:
                    assert (draft["uniform"] < draft["accept"]) == (draft["outcome"] == "accepted")
                if "matched" in draft:
                    check_draw(draft["matched"])
                    assert (draft["matched"]["token"] == draft["token"]) == (draft["outcome"] == "accepted")
                if "drawn" in draft:
                    check_draw(draft["drawn"])
                    assert draft["drawn"]["token"] == draft["token"]
                row = draft.get("row", [])
                if draft["token"] in row[::3]:
                    assert near(row[3 * row[::3].index(draft["token"]) + 1], record.target_token_probs[i])
            for key in ("exact", "final"):
                if step[key] is not None:
                    check_draw(step[key])
    assert num_drafts > 10 or method == "autoregressive"


def attended(step: Any, number: int) -> list[list[int]]:
    """Return which rows of a pass attend to which, as the page derives it."""
    rows, shown = [[0]], step["passes"][number]
    for i, draft in enumerate(step["drafts"] if shown["verifies"] else ()):
        rows.append([*rows[draft["parent"] + 1], i + 1])
    for anchor in shown["anchors"]:
        first = len(rows)
        rows += [[*rows[anchor], *range(first, first + n + 1)] for n in range(shown["depth"])]
    return rows


def seen_masks(method: Any) -> list[list[list[int]]]:
    """Return, filled in while the method decodes, the rows of each pass from the last pending token on."""
    seen: list[list[list[int]]] = []
    model, hidden = method.model, method.model.hidden

    def spy(inputs: Any, cache: Any, positions: Any = None, visible: Any = None, **more: Any) -> Any:
        mask = np.tri(len(inputs), dtype=bool) if visible is None else visible
        first = len(spy.prompt) - 1 if not seen else 0  # type: ignore[attr-defined]
        assert mask[first:, : first + 1].all()
        seen.append([np.flatnonzero(row).tolist() for row in mask[first:, first:]])
        return hidden(inputs, cache, positions, visible, **more)

    object.__setattr__(model, "hidden", spy)
    spy.prompt = (1, 0, 2)  # type: ignore[attr-defined]
    return seen


@pytest.mark.parametrize("groups", [None, (0, 2)])
@pytest.mark.parametrize("method", ["autoregressive", "pass", "pass-one-call", "pass-one-call-tree", "blockwise",
                                    "blockwise-paths", "ngram", "draft-model-tree"])  # fmt: skip
def test_the_masks_on_the_page_are_those_of_the_passes_that_ran(method: str, groups: Any) -> None:
    case = next(case for case in CASES if case.shape)
    rule = next(rule for name, rule in cases.methods_of(reference) if name == method)
    running = case.method(reference, method, rule)
    if groups is not None:
        if not hasattr(running, "groups") or method.startswith("blockwise"):
            return
        object.__setattr__(running, "groups", groups)
    seen = seen_masks(running)
    generation = reference.generate(running, (1, 0, 2), 12, seed=1, eos_token_ids=(), trace=True)
    (run,) = content(trace_page([Traced("", running, generation, 1)]))["runs"]
    assert [attended(step, i) for step in run["steps"] for i in range(len(step["passes"]))] == seen


def decoder(*texts: str) -> TokenDecoder:
    return TokenDecoder([Piece(text) for text in texts].__getitem__)


def plain(vocab_size: int = 3) -> Any:
    return reference.Autoregressive(reference.TableModel(vocab_size))


@pytest.mark.parametrize("texts", [("</script><b>", "<!--<script>", "&amp;\u2028"), ('"', "\\", "\x00'")])
def test_a_token_cannot_leave_its_place_in_the_page(texts: tuple[str, ...]) -> None:
    made = traced(plain(), "</script>", length=20, eos_token_ids=())
    page = trace_page([made], decoder(*texts))
    assert page.count("</script>") == 2 and "<b>" not in page and "<!--" not in page[20:]
    found = content(page)
    assert [found["tokens"][found["ids"].index(token)] for token in (0, 1, 2)] == list(texts)
    assert "".join(found["runs"][0]["pieces"]) == "".join(texts[token] for token in made.generation.tokens)


def test_a_character_of_two_tokens_belongs_to_the_second() -> None:
    decode = TokenDecoder([Piece(data=b"\xc3"), Piece(data=b"\xa9"), Piece(data=b"x")].__getitem__)
    model = reference.TableModel(3, popular=(0, 1))
    made = traced(reference.Autoregressive(model), length=40, eos_token_ids=(), decode=decode)
    pieces = content(trace_page([made], decode))["runs"][0]["pieces"]
    assert "".join(pieces) == made.generation.text and "é" in pieces and "" in pieces


LONG = [("pass", "token"), ("pass-one-call", "match"), ("pass-one-call-tree", None), ("draft-model", "block")]


@pytest.mark.parametrize(("method", "rule"), LONG)
def test_a_page_of_200_tokens_is_at_most_300_kb(method: str, rule: str | None) -> None:
    shape = {**cases.LARGE, "max_position_embeddings": 256, "vocab_size": 600}
    case = cases.Configuration("long", shape, num_draft=6, num_candidates=(3, 2, 2))
    running = case.method(reference, method, rule or "without-replacement")
    beside = traced(reference.Autoregressive(running.model), length=200, eos_token_ids=())
    made = traced(running, length=200, eos_token_ids=())
    page = trace_page([made, beside], lambda tokens: "".join(f" token{token}" for token in tokens))
    assert 60_000 < len(page.encode()) <= 300_000


def test_what_has_no_trace_or_another_prompt_is_refused() -> None:
    made = traced(plain())
    untraced = Traced("", plain(), reference.generate(plain(), (1, 0), 3))
    with pytest.raises(ValueError, match="found a record without choices, expected generate"):
        trace_page([made, untraced])
    for decodings in ([], [made, traced(plain(), prompt=(2,))]):
        with pytest.raises(ValueError, match="prompts, expected one or more decodings of one prompt"):
            trace_page(decodings)


def test_the_page_loads_nothing_and_is_part_of_the_package() -> None:
    page = trace_page([traced(plain())])
    allowed = {"http://www.w3.org/2000/svg"}  # a name, not a place
    assert set(re.findall(r"\w+://[^\"' )]+", page)) <= allowed
    assert not re.search(r"<link|<img|\bsrc=|@import|\bfetch\(|XMLHttpRequest|innerHTML", page)
    root = Path(__file__).resolve().parents[2]
    assert '"pass_sampling.reference.text" = ["trace.html"]' in (root / "pyproject.toml").read_text(encoding="utf-8")


def browse(page: str, folder: Path, *keys: str, place: str = "") -> str:
    """Return the document after some keys, as a headless browser has made it."""
    presses = "".join(f'document.dispatchEvent(new KeyboardEvent("keydown", {{ key: "{key}" }}));' for key in keys)
    path = folder / "page.html"
    path.write_text(page.replace("</body>", f"<script>{presses}</script></body>"), encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    command = [str(BROWSER), *flags, "--virtual-time-budget=5000", "--dump-dom", f"{path.as_uri()}{place}"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    return found.partition('<script type="application/json"')[0]


def masks_of(document: str) -> list[list[list[int]]]:
    return [json.loads(html.unescape(each)) for each in re.findall(r'data-mask="(.*?)"', document)]


@needs_browser
@pytest.mark.check
@pytest.mark.parametrize("method", ["pass-one-call", "pass-one-call-tree", "blockwise-paths"])
def test_a_browser_draws_the_masks(method: str, tmp_path: Path) -> None:
    case = next(case for case in CASES if case.shape)
    rule = next(rule for name, rule in cases.methods_of(reference) if name == method)
    page = trace_page([traced(case.method(reference, method, rule), length=12, eos_token_ids=())])
    (run,) = content(page)["runs"]
    widest = max(run["steps"], key=lambda step: len(attended(step, 0)))
    document = browse(page, tmp_path, place=f"#{run['steps'].index(widest) + 1}")
    assert masks_of(document) == [attended(widest, 0)] and len(attended(widest, 0)) > 3


@needs_browser
@pytest.mark.check
def test_a_browser_steps_through_the_page_by_keyboard(tmp_path: Path) -> None:
    pkg, texts = reference, ("<b>a</b>", " b\n", "&amp;")
    model = transformer(pkg)
    method = pkg.PaSS(model, pkg.LookAhead.random(2, model.hidden_size, seed=7))
    decode = decoder(*texts)
    made = [traced(each, name, length=30, eos_token_ids=()) for each, name in
            [(method, "pass"), (pkg.Autoregressive(model), "plain decoding")]]  # fmt: skip
    page = trace_page(made, decode)
    steps = content(page)["runs"][0]["steps"]
    last = len(steps)
    walks = {("ArrowRight",) * 2: 3, ("End",): last, ("End", "ArrowRight"): last, ("End", "ArrowLeft"): last - 1}
    for keys, number in {**walks, ("End", "Home"): 1, ("ArrowLeft",): 1}.items():
        document = browse(page, tmp_path, *keys)
        assert f"Step {number} of {last}" in document
        now = re.findall(r'<span class="token \w+ now"[^>]*>([^<]*)</span>', document.split('data-run="1"')[0])
        record = made[0].generation.records[number - 1]
        assert list(map(html.unescape, now)) == [texts[token] for token in record.tokens]
        assert masks_of(document) == [attended(steps[number - 1], i) for i in range(len(steps[number - 1]["passes"]))]
        for each, box in zip(made, re.findall(r'<div class="ribbon".*?</div>', document, re.DOTALL), strict=True):
            written = html.unescape(re.sub(r"<span[^>]*>|</span>|<div[^>]*>|</div>", "", box))
            assert written == decode((1, 0)) + decode(each.generation.tokens)
        outcomes = [draft.get("outcome", "unreached") for draft in steps[number - 1]["drafts"]]
        assert re.findall(r'class="decision (accepted|rejected|unreached)"', document) == outcomes
    assert f"Step 5 of {last}" in browse(page, tmp_path, place="#5")
