"""Where the page's own files and Plotly's script lie on disk, and the policy under which they run."""

from __future__ import annotations

import importlib.util
from importlib.metadata import version
from pathlib import Path

CONTENT_SECURITY_POLICY = (
    "default-src 'self'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
)
"""Header the page is made for: no eval, no inline script, nothing from another host. Plotly sets inline styles."""


def static_dir() -> Path:
    """Folder that is served under /static; its index.html is the page."""
    return Path(__file__).parent / "static"


def plotly_script() -> Path:
    """`plotly.min.js` inside the installed Python package, found without importing it (that takes 50 ms).

    Raises FileNotFoundError where Plotly is not installed.
    """
    spec = importlib.util.find_spec("plotly")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("the plotly package is missing; install gradspectra[server]")
    return Path(spec.origin).parent / "package_data" / "plotly.min.js"


def plotly_url() -> str:
    """Address the page loads Plotly's script from; it names the version, so it may be cached for ever."""
    return f"/vendor/plotly-{version('plotly')}.min.js"


def index_html() -> str:
    """Return the page, with the address of Plotly's script filled in."""
    return (static_dir() / "index.html").read_text("utf-8").replace("{{plotly}}", plotly_url())
