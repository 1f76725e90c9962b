"""Where the page's own files and Plotly's script lie on disk, and the policy under which they run."""

from __future__ import annotations

import hashlib
import json
import re
import time
from functools import cache, lru_cache
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
    """Plotly's bundle for axes at right angles, as published: a third of the whole library, with all that is drawn."""
    return static_dir() / "vendor" / "plotly-cartesian.min.js"


@cache
def plotly_url() -> str:
    """Address the page loads Plotly's script from; it names the version, so it may be cached for ever."""
    facts = json.loads(plotly_script().with_name("plotly-cartesian.json").read_text("utf-8"))
    return f"/vendor/plotly-cartesian-{facts['version']}.min.js"


def static_url() -> str:
    """Address of the folder's files as they are now: another one after any change, so each may be cached for ever."""
    return _url_at(int(time.monotonic()))


def static_path(path: str) -> tuple[str, bool]:
    """Return the path below the folder that one below /static stands for, and whether it may be cached for ever.

    An address that names other contents than those of now, as a page from before an update asks for, may not.
    """
    digest, _, rest = path.partition("/")
    if not re.fullmatch("[0-9a-f]{16}", digest):
        return path, False
    return rest, f"/static/{digest}" == static_url()


def index_html() -> str:
    """Return the page, with the addresses of its files filled in.

    All modules are named in its head: a browser then asks for them at once, not level by level as they import each
    other. Those that the page itself names come first: they ask for what is shown first, and what they ask for goes
    before all other modules.
    """
    here, folder = static_dir(), static_url()
    page = (here / "index.html").read_text("utf-8").replace("{{plotly}}", plotly_url())
    names = [path.relative_to(here).as_posix() for path in sorted((here / "js").rglob("*.js"))]
    others = [name for name in names if f'"/static/{name}"' not in page]
    links = "\n".join(f'<link rel="modulepreload" fetchpriority="low" href="/static/{name}">' for name in others)
    return page.replace("{{modules}}", links).replace('="/static/', f'="{folder}/')


@lru_cache(maxsize=1)
def _url_at(_second: int) -> str:
    """Looking at every file takes milliseconds, so it is done once a second."""
    files = sorted(path for path in static_dir().rglob("*") if path.is_file())
    return f"/static/{_digest(tuple((path, path.stat().st_mtime_ns) for path in files))}"


@lru_cache(maxsize=4)
def _digest(files: tuple[tuple[Path, int], ...]) -> str:
    """Sixteen hexadecimal digits that tell the contents of files, by path and time of change."""
    found = hashlib.sha256()
    for path, _ in files:
        found.update(f"{path.relative_to(static_dir())} {path.stat().st_size} ".encode() + path.read_bytes())
    return found.hexdigest()[:16]
