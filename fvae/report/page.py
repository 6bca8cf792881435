"""Pages that hold every picture inside themselves, so that one file can be sent to anybody."""

import base64
import html
import io
from collections.abc import Iterable

import matplotlib

matplotlib.use("Agg")  # pages are written on machines without a screen
import matplotlib.pyplot as plt  # noqa: E402

# Names are data: a dollar in one starts no formula.
matplotlib.rcParams["text.parse_math"] = False
# An axis shows the numbers themselves, not their distance from one in a corner.
matplotlib.rcParams["axes.formatter.useoffset"] = False

#: Nats from which on a curve is not drawn with the line of 0, which would flatten it: beta-tcvae's.
FAR = 10.0


def page(name: str, subtitle: str, sections: Iterable[tuple[str, str]]) -> str:
    """Return a page of HTML.

    Args:
        name: plain text, title and heading.
        subtitle: plain text under the heading.
        sections: heading and content of each section, both HTML.
    """
    body = "".join(f"<section><h2>{t}</h2>{content}</section>" for t, content in sections)
    return _PAGE.format(name=html.escape(name), subtitle=html.escape(subtitle), body=body)


def drawable(name: str) -> str:
    """Return a name as a figure can show it: bytes that are no text become question marks."""
    return name.encode("utf-8", "replace").decode()


def picture(content: bytes, kind: str = "png") -> str:
    """Return an ``<img>`` that holds the picture of that kind (png, gif)."""
    return f'<img alt="" src="data:image/{kind};base64,{base64.b64encode(content).decode()}">'


def table(rows: Iterable[tuple[object, object]]) -> str:
    """Return a table of names and values, given as plain text."""
    escaped = ((html.escape(str(k)), html.escape(str(v))) for k, v in rows)
    cells = (f"<tr><th>{k}</th><td>{v}</td></tr>" for k, v in escaped)
    return "<table>" + "".join(cells) + "</table>"


def png_of(figure: plt.Figure) -> bytes:
    """Return the figure as a PNG file, and close it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
    plt.close(figure)
    return buffer.getvalue()


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{name}</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem;
  color: #222; }}
h1 {{ margin-bottom: 0; }} h2 {{ margin-top: 2.2rem; border-bottom: 1px solid #ddd; }}
section {{ overflow-x: auto; }}
img {{ max-width: 100%; }} table {{ border-collapse: collapse; }}
th, td {{ text-align: left; padding: .2rem .8rem .2rem 0; font-variant-numeric: tabular-nums; }}
p, .subtitle {{ color: #555; }}
</style></head><body><h1>{name}</h1><div class="subtitle">{subtitle}</div>{body}</body></html>
"""
