"""HTML pages in one file that needs no network: their frame, tables, charts, commands, colours."""

import base64
import functools
import gzip
import html
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

INK, FAINT, GRID = "#24292f", "#b6bcc4", "#e6e8eb"
# told apart with any kind of colour vision: Okabe & Ito 2008, and three darker ones
COLOURS = (
    *("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#6a51a3"),
    *("#8c6d31", "#636363", "#8b1a1a"),
)
LONG = 24  # characters of a text that may break
MOST_NAMED = len(COLOURS)  # entries of a legend
CHART = 'class="chart"'
TICKS = 8  # about as many epochs have a number
NUMBER = re.compile(r"[-+]?(\d[\d.,]*(e[-+]?\d+)?|nan|inf)( ± [\d.e+-]+)?( ?%)?", re.IGNORECASE)


def document(title: str, body: str) -> str:
    """Return a whole page around `body`, which is HTML; `title` is text."""
    style, script = (Path(__file__).with_name(f"page.{kind}").read_text() for kind in ("css", "js"))
    library = f'<script type="text/plain" id="library">{_library()}</script>'
    scripts = (library if CHART in body else "") + f"<script>{script}</script>"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{style}</style></head><body>{body}"
        f"{scripts}</body></html>"
    )


@functools.cache
def _library() -> str:
    """Return plotly.js, compressed to a third."""
    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()


def table(names: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return rows of text below a header; columns of numbers are set to the right.

    Columns without any text are left out.
    """
    filled = [i for i in range(len(names)) if not lines or any(line[i] for line in lines)]
    names, lines = [names[i] for i in filled], [[line[i] for i in filled] for line in lines]
    columns = [[line[i] for line in lines if line[i]] for i in range(len(names))]
    kinds = [f' class="{kind}"' if (kind := _kind(texts)) else "" for texts in columns]
    parts = [
        "".join(f"<th{kind}>{html.escape(n)}</th>" for n, kind in zip(names, kinds, strict=True))
    ]
    for line in lines:
        cells = zip(line, kinds, strict=True)
        parts.append("".join(f"<td{kind}>{html.escape(text)}</td>" for text, kind in cells))
    rows = "".join(f"<tr>{part}</tr>" for part in parts)
    return f'<div class="wide"><table>{rows}</table></div>'


def _kind(texts: Sequence[str]) -> str:
    """Return how a column is set: numbers to the right, long texts with some room."""
    if texts and all(map(NUMBER.fullmatch, texts)):
        return "number"
    return "long" if max(map(len, texts), default=0) > LONG else ""


def command(text: str) -> str:
    """Return a command that wraps, and a button that copies it."""
    button = '<button type="button">copy</button>'
    return f'<div class="command"><pre>{html.escape(text)}</pre>{button}</div>'


def cell(value: Any) -> str:
    """Return the text of a config value in a table."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def chart(title: str, figure: go.Figure, height: int, width: int = 0) -> str:
    """Return a figure below a heading, in the style of all pages and without its own title.

    It is as wide as the page, but at least `width` pixels.
    """
    figure.update_layout(
        title=None,
        height=height,
        template="simple_white",
        plot_bgcolor="white",
        font={"color": INK, "size": 13},
        margin={"l": 10, "r": 10, "t": 30, "b": 10},
    )
    look = {"gridcolor": GRID, "showgrid": True, "exponentformat": "power", "automargin": True}
    for axis in (*figure.select_xaxes(), *figure.select_yaxes()):
        axis.update(look, tickformat=None if axis.type == "log" else "~g")  # 20000, not 0.2 x 10^5
    data = figure.to_json().replace("<", "\\u003c")
    inside = f'<script type="application/json">{data}</script>'
    style = f"min-height: {height}px" + (f"; min-width: {width}px" if width else "")
    place = f'<div class="wide"><div {CHART} style="{style}">{inside}</div></div>'
    return f"<h2>{html.escape(title)}</h2>{place}" if title else place


def whole_steps(figure: go.Figure, name: str) -> go.Figure:
    """Give the horizontal axis of a figure, such as epochs, a name and ticks at whole numbers."""
    last = max((x for trace in figure.data for x in trace.x if x is not None), default=1)
    steps = (n * 10**power for power in range(9) for n in (1, 2, 5))
    return figure.update_xaxes(
        title=name, tick0=0, dtick=next(n for n in steps if n >= last / TICKS)
    )


def name_ten(figure: go.Figure, named: Sequence[str]) -> go.Figure:
    """Name the first ten of many curves in a legend below; a button names them all.

    Args:
      named: the names of all; traces of a name that is not its first are in no legend anyway.
    """
    figure.update_layout(legend={"orientation": "h", "yref": "container", "y": 0, "x": 0})
    if len(named) <= MOST_NAMED:
        return figure.update_layout(showlegend=len(named) > 1)
    every = [trace.showlegend is not False for trace in figure.data]
    ten = set(named[:MOST_NAMED])
    first = [trace.showlegend is not False and trace.name in ten for trace in figure.data]
    for trace, there in zip(figure.data, first, strict=True):
        trace.showlegend = there
    button = {
        "label": f"name all {len(named)}",
        "method": "restyle",
        "args": [{"showlegend": every}],
        "args2": [{"showlegend": first}],
    }
    place = {
        "x": 0,
        "xanchor": "left",
        "y": 1,
        "yanchor": "bottom",
        "showactive": False,
        "active": -1,
    }
    return figure.update_layout(
        showlegend=True, updatemenus=[{"type": "buttons", "buttons": [button], **place}]
    )


def band(
    figure: go.Figure,
    x: Sequence[float],
    means: Sequence[float],
    deviations: Sequence[float],
    colour: str,
    name: str,
    group: str | None = None,
) -> None:
    """Fill the room of ± a deviation around a curve that is drawn after it."""
    above = [mean + deviation for mean, deviation in zip(means, deviations, strict=True)]
    below = [mean - deviation for mean, deviation in zip(means, deviations, strict=True)]
    look = {"fill": "toself", "fillcolor": colour, "opacity": 0.15, "line_width": 0}
    hidden = {"showlegend": False, "hoverinfo": "skip", "mode": "lines", "legendgroup": group}
    figure.add_scatter(x=[*x, *x[::-1]], y=above + below[::-1], name=name, **look, **hidden)


def colour_of(rank: int) -> str:
    """Return the colour of the curve of this rank, from 0 on; those without a name are pale."""
    return COLOURS[rank] if rank < MOST_NAMED else FAINT


def rank_colours(count: int) -> list[str]:
    """Return a colour per rank as hexadecimal, from the darkest for the best to the brightest."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return [to_hex(colormaps["viridis"](rank / max(count - 1, 1))) for rank in range(count)]
