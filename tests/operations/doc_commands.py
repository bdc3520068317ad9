"""The commands that the pages show, as a reader would type them."""
import re
import typing

from conftest import ROOT

FOLDERS = ("benchmarks", "client", "deploy", "docs", "examples", "integrations", "tests")
PAGES = sorted([*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in (ROOT / folder).glob("**/*.md"))])
# In blocks that hold other things too (layouts, formulas, answers) a line is a command when it begins with one of these.
PROGRAMS = re.compile(r"([A-Z_]+=\S+ )*(quantry|quantryd|quantry-worker|quantry-engine|quantry_\w+|(scripts|deploy|\.deps)/\S+"
                      r"|bash|cmake|cp|ctest|curl|docker|install|kubectl|make|openssl|oras|pip|python3?|sbatch|skopeo|systemctl)\s")


class Command(typing.NamedTuple):
    page: str  # relative to the repository
    line: int
    text: str  # continuation lines joined, without its comment

    def __str__(self):
        return f"{self.page}:{self.line}"


def blocks(text):
    """(language, [(line number, text)]) of each fenced ("sh", "", ...) or indented ("indented") block."""
    language, rows = None, []
    for number, row in enumerate(text.splitlines(), 1):
        fence = re.match(r"```(\w*)", row)
        if fence and language is None:
            language, rows = fence.group(1), []
        elif fence:
            yield language, rows
            language, rows = None, []
        elif language is not None:
            rows.append((number, row))
        elif row.startswith("    "):
            yield "indented", [(number, row[4:])]


def joined(rows):
    """Lines that end in a backslash, with those they go on in."""
    start, text = 0, ""
    for number, row in rows:
        start = start if text else number
        if row.endswith("\\"):
            text += row[:-1].strip() + " "
        else:
            yield start, text + row.strip()
            text = ""


def commands_of(page):
    name = str(page.relative_to(ROOT))
    indented = []
    found = []
    for language, rows in blocks(page.read_text()):
        if language == "indented":
            indented += rows
        elif language in ("sh", "bash", "console", ""):
            found += [(number, text, language != "") for number, text in joined(rows)]
    found += [(number, text, False) for number, text in joined(indented)]
    for number, text, is_shell in sorted(found):
        text = re.sub(r"(^|\s+)#.*", "", text)
        if text and (is_shell or PROGRAMS.match(text + " ")):
            yield Command(name, number, text)


COMMANDS = [command for page in PAGES for command in commands_of(page)]
