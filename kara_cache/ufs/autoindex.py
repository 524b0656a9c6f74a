"""Directory listings as web servers write them: a page of links (nginx, Apache, Caddy, http.server)."""

from __future__ import annotations

from html.parser import HTMLParser
from urllib.parse import unquote, urljoin, urlsplit

_SIGNS = ("index of", "directory listing")  # in the title or heading of an empty directory's page


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.hrefs: list[str] = []
        self.headings = ""
        self._in_heading = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.hrefs += [value for name, value in attrs if name == "href" and value]
        self._in_heading = tag in ("title", "h1")

    def handle_endtag(self, tag: str) -> None:
        self._in_heading = False

    def handle_data(self, data: str) -> None:
        if self._in_heading:
            self.headings += data.lower()


def autoindex_names(page: str, url: str) -> list[str] | None:
    """Names of the direct children of the directory at `url` (which ends in "/"), directories with a "/".

    Only links to the same server and right below `url` count: not those that sort the columns, not
    the parent, not what a page links besides. None if the page is no listing.
    """
    links = _Links()
    links.feed(page)
    links.close()
    base = urlsplit(url)
    names: set[str] = set()
    for href in links.hrefs:
        try:
            target = urlsplit(urljoin(url, href.strip()))
        except ValueError:  # no URL at all
            continue
        if (target.scheme, target.netloc) != (base.scheme, base.netloc) or target.query:
            continue
        if not target.path.startswith(base.path):
            continue
        name = target.path[len(base.path) :]
        names.add(unquote(name, errors="surrogateescape"))
    names = {name for name in names if _is_plain(name.removesuffix("/"))}
    if not names and not any(sign in links.headings for sign in _SIGNS):
        return None
    return sorted(names)


def _is_plain(name: str) -> bool:
    return bool(name) and "/" not in name and "\0" not in name and name not in (".", "..")
