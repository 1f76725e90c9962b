"""Pages without any script: the frame of the manual, and a problem for whoever opened its address in a browser."""

from __future__ import annotations

from html import escape

from starlette.responses import HTMLResponse

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1b1f24; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid #ccd; }
code, pre { font: 14px/1.4 ui-monospace, monospace; background: #f1f3f6; border-radius: 4px; padding: 1px 4px; }
h3 code { font-size: 16px; } .method { font-weight: 700; margin-right: .5rem; } section { margin: 1.5rem 0; }
p, h1 { overflow-wrap: anywhere; } nav a { margin-right: 1.5rem; }
table { border-collapse: collapse; width: 100%; }
td, th { text-align: left; padding: 3px 12px 3px 0; vertical-align: top; }
@media (prefers-color-scheme: dark) { body { background: #14171c; color: #e6e8eb; } code, pre { background: #23272e; }
  a { color: #8ab4f8; } h2 { border-color: #333a44; } }
"""


def document(title: str, body: str, status: int = 200) -> HTMLResponse:
    """A whole page. title: plain text; body: markup."""
    return HTMLResponse(
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><link rel="icon" href="/static/icon.svg">'
        f"<style>{STYLE}</style></head><body><main>{body}</main></body></html>",
        status,
    )


def wants_page(accept: str | None) -> bool:
    """Whether a request's Accept header is that of a browser which was sent to the address itself.

    Scripts of the page and programs name other forms, or take any.
    """
    return "text/html" in (accept or "").lower()


def problem_page(status: int, title: str, detail: str, remedy: str) -> HTMLResponse:
    """A problem for people, with a way back; to the sign-in too where that was missing."""
    links = [("/login", "Sign in")] if status == 401 else []
    links += [("/", "All runs"), ("/docs", "The interface")]
    ways = "".join(f'<a href="{target}">{name}</a>' for target, name in links)
    said = detail[:1].upper() + detail[1:].rstrip(".") + "."
    text = f"<h1>{escape(title)}</h1><p>{escape(said)}</p><p>{escape(remedy)}</p><nav>{ways}</nav>"
    return document(f"{title} · gradspectra", text, status)
