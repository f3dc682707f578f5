"""The page itself: one HTML file that needs nothing else, light or dark as its reader's system is, down to phones."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from jepa_fast.report.charts import Series

_LIGHT = """--page:#f7f7f5; --card:#ffffff; --ink:#1b1f24; --muted:#59636e; --grid:#dfe2e6; --wall:#b4bac2;
--series-1:#0b66c3; --series-2:#c8510b; --series-3:#12805c; --series-4:#8a3fb0;
--series-5:#957000; --series-6:#b3275d; --series-7:#0a7e8c; --series-8:#6b7280;"""
_DARK = """--page:#14171a; --card:#1c2024; --ink:#e8eaed; --muted:#a3abb5; --grid:#363d45; --wall:#59626c;
--series-1:#6cb2ff; --series-2:#ff9a5c; --series-3:#4fcf9f; --series-4:#d09bf5;
--series-5:#e6be4a; --series-6:#ff85ad; --series-7:#5fd3e0; --series-8:#a3abb5;"""
# Also the palette of the pictures in docs/.
THEME = f"{{{_LIGHT}}} @media (prefers-color-scheme: dark) {{ :root {{{_DARK}}} }}"

_STYLE = f"""
:root {THEME}
* {{ box-sizing:border-box; }}
body {{ margin:0 auto; max-width:72rem; padding:1.5rem 1rem 4rem; background:var(--page); color:var(--ink);
  font:16px/1.5 system-ui, sans-serif; color-scheme:light dark; }}
h1 {{ font-size:1.6rem; margin:0; overflow-wrap:anywhere; }}
h2 {{ font-size:1.2rem; margin:2.5rem 0 .25rem; }}
h3 {{ font-size:1rem; margin:0; }}
p, ul {{ margin:.4rem 0; max-width:50rem; }}
ul {{ padding-left:1.2rem; }}
.quiet {{ color:var(--muted); }}
.grid {{ display:grid; grid-template-columns:repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); gap:1rem; }}
.grid.pairs {{ grid-template-columns:repeat(auto-fill, minmax(min(100%, 27rem), 1fr)); }}
.tiles {{ display:grid; grid-template-columns:repeat(auto-fit, minmax(9rem, 1fr)); gap:.75rem; margin:1rem 0; }}
.tiles div, figure {{ background:var(--card); border:1px solid var(--grid); border-radius:8px; padding:.75rem; }}
.tiles b {{ display:block; font-size:1.3rem; line-height:1.3; overflow-wrap:anywhere; }}
.tiles span {{ color:var(--muted); font-size:.85rem; }}
figure {{ margin:0; min-width:0; }}
figcaption {{ font-size:.9rem; margin-top:.5rem; overflow-wrap:anywhere; }}
figure > svg {{ display:block; width:100%; height:auto; }}
svg text {{ font-family:system-ui, sans-serif !important; }}
.key {{ display:flex; flex-wrap:wrap; gap:.1rem .9rem; font-size:.85rem; color:var(--muted); margin:.1rem 0 .3rem; }}
.key i {{ display:inline-block; width:1.3em; border-top:3px solid; vertical-align:middle; margin-right:.35em; }}
.rooms {{ display:grid; grid-template-columns:repeat(3, 1fr); gap:.5rem; margin-top:.5rem; }}
.rooms span {{ font-size:.78rem; color:var(--muted); display:block; line-height:1.3; }}
.room {{ display:block; width:100%; height:auto; border:1px solid var(--grid); }}
.scroll {{ overflow-x:auto; }}
table {{ border-collapse:collapse; font-size:.9rem; font-variant-numeric:tabular-nums; }}
th, td {{ text-align:right; padding:.3rem .7rem; border-bottom:1px solid var(--grid); white-space:nowrap; }}
th {{ color:var(--muted); font-weight:500; }}
th:first-child, td:first-child {{ text-align:left; padding-left:0; }}
table.settings td {{ text-align:left; white-space:normal; overflow-wrap:anywhere; }}
summary {{ cursor:pointer; }}
code {{ font-size:.9em; overflow-wrap:anywhere; }}
"""


@dataclass(frozen=True)
class Figure:
    """A picture with its title, its colours' names and a sentence that says what it shows. `body` is HTML."""

    title: str
    body: str
    caption: str
    key: Sequence[tuple[str, str, bool]] = ()  # name, CSS colour, whether dashed

    def html(self) -> str:
        """The <figure>."""
        return (
            f"<figure><h3>{escape(self.title)}</h3>{_key(self.key)}{self.body}"
            f"<figcaption>{escape(self.caption)}</figcaption></figure>"
        )


@dataclass(frozen=True)
class Section:
    """A heading, words on what is to be seen, HTML of any kind, then figures side by side."""

    title: str
    words: Sequence[str] = ()
    html: str = ""
    figures: Sequence[Figure] = field(default_factory=list)


def page(title: str, subtitle: str, tiles: Sequence[tuple[str, str]], sections: Sequence[Section]) -> str:
    """The whole document. `tiles` are (value, what it is)."""
    shown = "".join(f"<div><b>{escape(value)}</b><span>{escape(name)}</span></div>" for value, name in tiles)
    body = "".join(_section(section) for section in sections)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>"
        f'<h1>{escape(title)}</h1><p class="quiet">{escape(subtitle)}</p><div class="tiles">{shown}</div>{body}'
        "</body></html>\n"
    )


def key_of(series: Sequence[Series]) -> list[tuple[str, str, bool]]:
    """The key of a chart's curves."""
    colors = ["var(--ink)" if one.color == 0 else f"var(--series-{one.color})" for one in series]
    return [(one.name, color, one.dashed) for one, color in zip(series, colors, strict=True)]


def table(head: Sequence[str], rows: Sequence[Sequence[str]], settings: bool = False) -> str:
    """A table that scrolls sideways where it must; `settings` is for names and long values."""
    lines = [f"<tr>{''.join(f'<th>{escape(cell)}</th>' for cell in head)}</tr>"] if head else []
    lines += [f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows]
    return f'<div class="scroll"><table{" class=settings" if settings else ""}>{"".join(lines)}</table></div>'


def bullets(sentences: Sequence[str]) -> str:
    """A list, one sentence an item."""
    return f"<ul>{''.join(f'<li>{escape(sentence)}</li>' for sentence in sentences)}</ul>"


def folded(title: str, html: str) -> str:
    """HTML behind a title to click on."""
    return f"<details><summary>{escape(title)}</summary>{html}</details>"


def _section(section: Section) -> str:
    words = "".join(f"<p>{escape(sentence)}</p>" for sentence in section.words)
    figures = "".join(figure.html() for figure in section.figures)
    # One, two or four in a row of three would leave holes.
    columns = "grid pairs" if len(section.figures) in (1, 2, 4) else "grid"
    grid = f'<div class="{columns}">{figures}</div>' if figures else ""
    return f"<section><h2>{escape(section.title)}</h2>{words}{section.html}{grid}</section>"


def _key(key: Sequence[tuple[str, str, bool]]) -> str:
    if not key:
        return ""
    marks = (
        f'<span><i style="color:{color};border-top-style:{"dashed" if dashed else "solid"}"></i>{escape(name)}</span>'
        for name, color, dashed in key
    )
    return f'<div class="key">{"".join(marks)}</div>'
