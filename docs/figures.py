"""Draw the figures of the README and of the site: `python docs/figures.py` writes docs/figures/*.svg.

Each is drawn twice, for light and for dark pages. The numbers of the second one are those of README's table of results.
"""

import re
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "figures"
THEMES = {
    "light": {
        "ink": "#23262b", "soft": "#666b74", "line": "#c9c6bf", "text": "#edecea", "bar": "#8a919c",
        "draft": "#3458a8", "accepted": "#23744a", "correction": "#a8481f",
    },
    "dark": {
        "ink": "#e4e4e0", "soft": "#9aa0aa", "line": "#4a4f58", "text": "#2f343b", "bar": "#7b828d",
        "draft": "#94b4f7", "accepted": "#72cd97", "correction": "#f0a078",
    },
}  # fmt: skip
CODE, WORDS = "ui-monospace,Menlo,Consolas,monospace", "system-ui,sans-serif"
# A draft, the target's probability, the draft's, and the outcome: a uniform against min(1, target / draft).
DRAFTS = [("name", 0.62, 0.55, "accept"), ("):", 0.58, 0.71, "accept"), ("return", 0.06, 0.60, "reject")]


class Drawing:
    """The shapes of an SVG file, in the colours of a theme."""

    def __init__(self, theme: dict[str, str], width: int, height: int, title: str):
        """Begin with a title, which screen readers read."""
        self.theme, self.size, self.shapes = theme, (width, height), [f"<title>{escape(title)}</title>"]

    def text(
        self, x: float, y: float, said: str, colour: str = "soft", anchor: str = "middle", code: bool = False
    ) -> None:
        """Write a line of text, as code or as words."""
        style = f'font-family="{CODE if code else WORDS}" font-size="{14 if code else 13}" fill="{self.theme[colour]}"'
        self.shapes.append(f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" {style}>{escape(said)}</text>')

    def box(self, x: float, y: float, width: float, said: str, colour: str, dashed: bool = False) -> None:
        """Draw a token: the text's own filled, drafts in outline, look-ahead vectors dashed."""
        filled = colour == "text"
        style = (
            f'fill="{self.theme["text"]}"'
            if filled
            else f'fill="none" stroke="{self.theme[colour]}" stroke-width="1.6"'
        )
        style += ' stroke-dasharray="4 3"' if dashed else ""
        self.shapes.append(f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="28" rx="5" {style}/>')
        self.text(x + width / 2, y + 19, said, "ink" if filled else colour, code=True)

    def bar(self, x: float, y: float, width: float, height: float, colour: str) -> None:
        """Draw a bar."""
        self.shapes.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="2" fill="{self.theme[colour]}"/>'
        )

    def line(self, x1: float, y1: float, x2: float, y2: float, arrow: bool = False) -> None:
        """Draw a line, or an arrow that points down."""
        path = f"M{x1:g} {y1:g}L{x2:g} {y2:g}" + ("m-4 -5l4 5l4 -5" if arrow else "")
        self.shapes.append(f'<path d="{path}" fill="none" stroke="{self.theme["line"]}" stroke-width="1.5"/>')

    def svg(self) -> str:
        """Return the file."""
        width, height = self.size
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
        )
        return "\n".join([head, *self.shapes, "</svg>", ""])


def step(theme: dict[str, str]) -> str:
    """Draw one step of PaSS: a pass that drafts, a pass that verifies, and four new tokens."""
    drawing = Drawing(theme, 760, 330, "A step of PaSS: one pass drafts, one pass verifies, four tokens are new")
    columns, width = (300, 412, 524, 636), 96
    middles = [x + width / 2 for x in columns]
    drawing.text(16, 43, "Pass 1: draft", "ink", "start")
    drawing.box(140, 24, 148, "def find(", "text")
    drawing.box(columns[0], 24, width, "self", "text")
    for x, name in zip(columns[1:], ("L1", "L2", "L3"), strict=True):
        drawing.box(x, 24, width, name, "draft", dashed=True)
    drawing.text(middles[2], 15, "look-ahead vectors")
    for x, said in zip(middles, ("draw from the model's own distribution", "draft", "draft", "draft"), strict=True):
        drawing.line(x, 56, x, 98, arrow=True)
        drawing.text(x - 9, 81, said, anchor="end")
    drawing.text(16, 121, "Pass 2: verify", "ink", "start")
    drawing.box(columns[0], 102, width, ",", "text")
    for x, (token, *_) in zip(columns[1:], DRAFTS, strict=True):
        drawing.box(x, 102, width, token, "draft")
    labels = ("target probability", "soft"), ("draft probability", "draft"), ("min(1, target / draft)", "soft")
    for y, (said, colour) in zip((152, 170, 194), labels, strict=True):
        drawing.text(columns[1] - 12, y, said, colour, "end")
    for x, (_, target, draft, outcome) in zip(columns[1:], DRAFTS, strict=True):
        drawing.bar(x, 143, width * target, 10, "bar")
        drawing.bar(x, 161, width * draft, 10, "draft")
        drawing.text(x, 194, f"{min(1.0, target / draft):.2f}", "ink", "start")
        colour = "accepted" if outcome == "accept" else "correction"
        drawing.text(x + width / 2 - 7, 225, outcome, colour, "end")
    for x in middles:
        drawing.line(x, 206, x, 236, arrow=True)
    drawing.text(16, 259, "New text", "ink", "start")
    drawing.box(140, 240, 148, "def find(self", "text")
    for x, token, colour in zip(
        columns, (",", "name", "):", "⏎"), ("text", "accepted", "accepted", "correction"), strict=True
    ):
        drawing.box(x, 240, width, token, colour)
    sources = ("exact", "accepted", "accepted", "correction")
    for x, said in zip(middles, sources, strict=True):
        drawing.text(x, 286, said, "soft" if said == "exact" else said)
    drawing.text(
        16,
        318,
        "Four tokens for two passes, distributed as the model's own. The correction is drawn from the residual.",
        "ink",
        "start",
    )
    return drawing.svg()


def results() -> tuple[list[str], list[tuple[str, list[tuple[float, float] | None]]]]:
    """Read README's table of results: the settings, and the speed and the tokens per pass of each way in them."""
    table = re.search(
        r"^## Results\n.*?^(\|.*?)\n\n", (ROOT / "README.md").read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    assert table is not None, "README.md: found no table of results"
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table[1].splitlines()]
    found = []
    for name, *cells in rows:
        pairs = [re.findall(r"\d+\.\d+", cell) for cell in cells]
        figures = [(float(pair[0]), float(pair[1])) if len(pair) == 2 else None for pair in pairs]
        found.append((re.sub(r" \(.*\)|`", "", name), figures))
    return head[1:], found


SPAN = 1.5  # the speed at which a bar has its full length


def gain(theme: dict[str, str]) -> str:
    """Draw the speed of each way of decoding over plain decoding, with its tokens per pass."""
    settings, rows = results()
    left, scale, height = 190, 200, 44 + 40 * len(rows)
    drawing = Drawing(theme, 760, height + 30, "Speed over plain decoding, and tokens per pass")
    for column, setting in enumerate(settings):
        x = left + 290 * column
        drawing.text(x, 20, setting, "ink", "start")
        for row, (name, figures) in enumerate(rows):
            y = 38 + 40 * row
            if column == 0:
                drawing.text(left - 14, y + 14, name, "ink", "end")
            if (found := figures[column]) is None:
                drawing.text(x, y + 14, "not measured", "soft", "start")
                continue
            speed, tokens = found
            colour = "accepted" if speed > 1.03 else "correction" if speed < 0.97 else "bar"
            drawing.bar(x, y, scale * speed / SPAN, 18, colour)
            drawing.text(x + scale * max(speed, 1) / SPAN + 8, y + 14, f"{speed:.2f}", "ink", "start")
            drawing.text(x, y + 31, f"{tokens:.2f} tokens/pass", "soft", "start")
        drawing.line(x + scale / SPAN, 30, x + scale / SPAN, height)
    drawing.text(left, height + 20, "Speed over plain decoding, which is 1.00.", "soft", "start")
    return drawing.svg()


def figures() -> dict[str, str]:
    """Return all figures by the names of their files."""
    return {f"{draw.__name__}-{name}.svg": draw(theme) for draw in (step, gain) for name, theme in THEMES.items()}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, text in figures().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
