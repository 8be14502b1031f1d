"""HTML that cannot forget to escape: text becomes `Html` by being escaped, and elements hold only `Html`."""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Iterable, Mapping
from pathlib import Path
from string import Template

from histoseg.atomic import write_whole
from histoseg.errors import OutputError

# elements without an end tag
_VOID = ("br", "img", "input", "meta")


class Html(str):
    """Text that is HTML already; made by `tag`, `join` and `escape` alone."""

    __slots__ = ()


def escape(value: object) -> Html:
    """Return a value as HTML text; bytes of a file name that are no UTF-8 become question marks."""
    if isinstance(value, Html):
        return value
    return Html(html.escape(str(value).encode("utf-8", "replace").decode()))


def tag(name: str, attributes: Mapping[str, object] | None = None, *children: object) -> Html:
    """Return an element; what is not `Html` is escaped, and an attribute that is `None` left out.

    Args:
        name: Of the element.
        attributes: Their names and values; an empty text makes a bare attribute.
        children: What it holds.
    """
    parts = [
        f" {key}" if value == "" else f' {key}="{escape(value)}"'
        for key, value in (attributes or {}).items()
        if value is not None
    ]
    head = f"<{name}{''.join(parts)}>"
    return Html(head if name in _VOID else f"{head}{join(children)}</{name}>")


def join(parts: Iterable[object]) -> Html:
    """Return parts in a row, escaped where they are no `Html`."""
    return Html("".join(map(escape, parts)))


def isolate(name: object) -> Html:
    """Return a name whose writing direction cannot turn the words around it."""
    return tag("bdi", None, name)


def name_image(media_type: str, data: bytes) -> str:
    """Return an image as a `data:` address."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def list_facts(facts: Iterable[tuple[str, object]], kind: str = "facts") -> Html:
    """Return terms and what they are as a description list; those that are `None` are left out."""
    pairs = [
        tag("div", None, tag("dt", None, term), tag("dd", None, value))
        for term, value in facts
        if value is not None
    ]
    return tag("dl", {"class": kind}, *pairs)


def build_page(title: str, body: Html, *, style: str, script: str) -> str:
    """Return a whole page with its style and script in it, and a policy that lets nothing else run or load.

    Hashes name the one style and the one script (Content Security Policy 3, https://www.w3.org/TR/CSP3/).
    """
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    return Template(read_asset("page.html")).substitute(
        policy=policy, title=escape(title), style=style, body=body, script=script
    )


def read_asset(name: str) -> str:
    """Return a file that lies beside this module."""
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def write_page(path: Path, text: str) -> None:
    """Write a page so that it appears whole or not at all.

    Raises:
        OutputError: The file cannot be written.
    """
    try:
        with write_whole(path) as part:
            part.write_bytes(text.encode())
    except OSError as error:
        raise OutputError(
            f"{path}: cannot write the page ({error}); free space or choose another -o"
        ) from error


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
