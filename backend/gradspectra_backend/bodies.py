"""Request bodies decompressed within bounds."""

from __future__ import annotations

import zlib

from gradspectra_backend.door import too_large
from gradspectra_backend.problems import Problem

GZIP = 31
"""zlib's number for the gzip form with its largest window."""


def decoded(body: bytes, encoding: str, limit: int) -> bytes:
    """Undo Content-Encoding: identity or gzip, never more than `limit` bytes; raises Problem 400, 413 or 415."""
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return body
    if encoding not in ("gzip", "x-gzip"):
        raise Problem(
            "unsupported-encoding", f"Content-Encoding {encoding[:40]!r} is not understood", field="Content-Encoding"
        )
    stream = zlib.decompressobj(GZIP)
    try:
        plain = stream.decompress(body, limit + 1)
    except zlib.error as error:
        raise Problem("malformed-body", f"the gzip body is damaged: {error}") from None
    if len(plain) > limit or stream.unconsumed_tail:
        raise too_large(limit)
    if not stream.eof:
        raise Problem("malformed-body", "the gzip body ends too early")
    if stream.unused_data:
        raise Problem("malformed-body", "something follows the gzip body", remedy="Send one gzip member.")
    return plain
