"""HTML pages in one file that needs no network: their frame, tables, charts and colours."""

import html
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.io import to_html
from plotly.offline import get_plotlyjs

INK, GRID = "#24292f", "#e6e8eb"
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #24292f; max-width: 1100px;
       margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.1rem; margin: 2rem 0 0.3rem; }
p { margin: 0.3rem 0; } .faint { color: #6e7781; }
pre { background: #f6f8fa; padding: 0.7rem; overflow-x: auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; }
th, td { padding: 0.25rem 0.7rem; border-bottom: 1px solid #e6e8eb; text-align: right;
         white-space: nowrap; }
th { font-weight: 600; }
details { margin: 0.5rem 0; } summary { cursor: pointer; }
.figures { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start; }
.figures img { max-width: 520px; height: auto; }
"""


def document(title: str, body: str) -> str:
    """Return a whole page around `body`, which is HTML; `title` is text."""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style>"
        f"<script>{get_plotlyjs()}</script></head><body>{body}</body></html>"
    )


def table(names: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return rows of text below a header."""
    header = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    rows = ("".join(f"<td>{html.escape(text)}</td>" for text in line) for line in lines)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{header}</tr>{body}</table></div>'


def cell(value: Any) -> str:
    """Return the text of a config value in a table."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def chart(title: str, figure: go.Figure, height: int) -> str:
    """Return a figure below a heading, in the style of all pages and without its own title."""
    figure.update_layout(
        title=None,
        height=height,
        template="simple_white",
        plot_bgcolor="white",
        font={"color": INK, "size": 13},
        margin={"l": 70, "r": 30, "t": 20, "b": 55},
    )
    figure.update_xaxes(gridcolor=GRID, showgrid=True, exponentformat="power")
    figure.update_yaxes(gridcolor=GRID, showgrid=True, exponentformat="power")
    inside = to_html(figure, full_html=False, include_plotlyjs=False, config={"displaylogo": False})
    return f'<h2>{html.escape(title)}</h2><div class="wide">{inside}</div>'


def rank_colours(count: int) -> list[str]:
    """Return a colour per rank as hexadecimal, from the darkest for the best to the brightest."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return [to_hex(colormaps["viridis"](rank / max(count - 1, 1))) for rank in range(count)]
