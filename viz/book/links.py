"""The links of a site, checked: each leads to a file of it, and to a place that this file has.

Links to other hosts are counted, and not followed.

Read next: `site.py`.
"""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LEADS = {"a": "href", "link": "href", "img": "src", "script": "src", "iframe": "src", "source": "src"}


class _Page(HTMLParser):
    """The links of a page, and the places that others may lead to."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.places: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        for name in ("id", "name"):
            if value := found.get(name):
                self.places.add(value)
        if (target := found.get(LEADS.get(tag, ""))) is not None:
            self.links.append(target)


def broken_links(site: Path) -> list[str]:
    """What leads nowhere, as sentences: page, link, and what is missing."""
    pages: dict[Path, _Page] = {}
    for path in sorted(site.rglob("*.html")):
        pages[path.resolve()] = page = _Page()
        page.feed(path.read_text(encoding="utf-8"))
    return [
        f"{path.relative_to(site.resolve())}: {link!r}: {reason}"
        for path, page in pages.items()
        for link in page.links
        if (reason := _fault(path, link, pages, site.resolve()))
    ]


def _fault(path: Path, link: str, pages: dict[Path, _Page], site: Path) -> str:
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return ""
    if parts.path.startswith("/"):
        return "leads to the root of a host, and the site may lie in a folder"
    target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    if target.is_dir():
        return "leads to a folder, which the disk does not open as a page"
    if not target.is_file():
        return "there is no such file"
    if not target.is_relative_to(site):
        return "leads out of the site"
    place = unquote(parts.fragment)
    if place and target in pages and place not in pages[target].places:
        return f"this page has no place {place!r}"
    return ""
