"""The defect gallery: real bugs of speculative decoding, put into our own running code, and what sees each of them.

Run as a program it writes the table in docs/verification.md. A new bug gets an entry in one of the lists below.
"""

import sys
from pathlib import Path

sys.path += [str(Path(__file__).parent / room) for room in ("exactness", "support")]  # when it is run as a program

from gallery_acceptance import ACCEPTANCE
from gallery_accounts import ACCOUNTS
from gallery_drafts import DRAFTS
from gallery_ends import ENDS
from gallery_numbers import NUMBERS
from gallery_rows import ROWS
from gallery_tools import Defect, damage

GALLERY: tuple[Defect, ...] = (*ACCEPTANCE, *DRAFTS, *ROWS, *ENDS, *NUMBERS, *ACCOUNTS)
PAGE = Path(__file__).resolve().parents[1] / "docs" / "verification.md"
BEGIN, END = "<!-- gallery -->", "<!-- /gallery -->"
OTHERWISE = {"exact": "0", "refused": "refused", "beside": "-"}


def table_of_defects() -> str:
    """Return the gallery as a Markdown table, with the damage that each entry does to the specification."""
    lines = ["| name | seen in | what goes wrong | damage | seen by |", "|---|---|---|---|---|"]
    for defect in GALLERY:
        loss = OTHERWISE[defect.distribution] if defect.check else f"{damage(defect):#.3g}"
        lines.append(f"| {defect.name} | {defect.source} | {defect.what} | {loss} | {defect.seen_by} |")
    return "\n".join(lines)


def page_with_table(page: str) -> str:
    """Return the page with the table that the gallery gives between its markers."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table_of_defects()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page_with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
