"""The page itself: one HTML file that needs nothing else, light or dark as its reader's system is, down to phones."""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from jepa_fast.report.charts import Series

_LIGHT = """--page:#f7f7f5; --card:#ffffff; --ink:#1b1f24; --muted:#59636e; --grid:#dfe2e6; --wall:#b4bac2;
--series-1:#0b66c3; --series-2:#c8510b; --series-3:#12805c; --series-4:#8a3fb0;
--series-5:#957000; --series-6:#b3275d; --series-7:#0a7e8c; --series-8:#6b7280;"""
_DARK = """--page:#14171a; --card:#1c2024; --ink:#e8eaed; --muted:#a3abb5; --grid:#363d45; --wall:#59626c;
--series-1:#6cb2ff; --series-2:#ff9a5c; --series-3:#4fcf9f; --series-4:#d09bf5;
--series-5:#e6be4a; --series-6:#ff85ad; --series-7:#5fd3e0; --series-8:#a3abb5;"""
# Also the palette of the pictures in docs/.
THEME = f"{{{_LIGHT}}} @media (prefers-color-scheme: dark) {{ :root {{{_DARK}}} }}"

# What walks along paths.
SCRIPT = (Path(__file__).parent / "rollouts.js").read_text(encoding="utf-8")
NO_HTML = Markup("")
FOLDER = Path(__file__).parent


def policy(script: str) -> Markup:
    """The policy of a page that runs one script, known by its hash.

    Pages take strangers' files: none of their words is markup, nothing else runs and nothing is fetched.
    """
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    return Markup(
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )


def templates(*folders: Path) -> Environment:
    """The templates in these folders, and base.html."""
    return Environment(loader=FileSystemLoader([*folders, FOLDER]), autoescape=True, undefined=StrictUndefined)


def html(macro: str, *values: Any) -> Markup:
    """What a macro of page.html makes of `values`. Text in them is escaped, unless it is Markup, which macros give."""
    made: Markup = getattr(_MACROS, macro)(*values)
    return made


_WORDS = {"theme": Markup(THEME), "policy": policy(SCRIPT), "script": Markup(SCRIPT)}
_MACROS = templates().get_template("page.html", globals=_WORDS).module


@dataclass(frozen=True)
class Figure:
    """A picture with its title, its colours' names and a sentence that says what it shows."""

    title: str
    body: Markup
    caption: str
    key: Sequence[tuple[str, str, bool]] = ()  # name, CSS colour, whether dashed


@dataclass(frozen=True)
class Section:
    """A heading, words on what is to be seen, HTML of any kind, then figures side by side."""

    title: str
    words: Sequence[str] = ()
    html: Markup = NO_HTML
    figures: Sequence[Figure] = field(default_factory=list)


def page(title: str, subtitle: str, tiles: Sequence[tuple[str, str]], sections: Sequence[Section]) -> Markup:
    """The whole document. `tiles` are (value, what it is)."""
    return html("page", title, subtitle, tiles, sections)


def key_of(series: Sequence[Series]) -> list[tuple[str, str, bool]]:
    """The key of a chart's curves."""
    colors = ["var(--ink)" if one.color == 0 else f"var(--series-{one.color})" for one in series]
    return [(one.name, color, one.dashed) for one, color in zip(series, colors, strict=True)]


def table(head: Sequence[str], rows: Sequence[Sequence[str]], settings: bool = False) -> Markup:
    """A table that scrolls sideways where it must; `settings` is for names and long values."""
    return html("table", head, rows, settings)


def bullets(sentences: Sequence[str]) -> Markup:
    """A list, one sentence an item."""
    return html("bullets", sentences)


def folded(title: str, content: Markup) -> Markup:
    """HTML behind a title to click on."""
    return html("folded", title, content)
