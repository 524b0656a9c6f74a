from __future__ import annotations

import pytest

from kara_cache.ufs.autoindex import autoindex_names

URL = "http://host:81/data/d/"


@pytest.mark.parametrize(
    "href",
    [
        "http://elsewhere/data/d/x",
        "http://host/data/d/x",
        "https://host:81/data/d/x",
        "//elsewhere:81/data/d/x",
        "/data/x",
        "/data/d",
        "../d-not/x",
        "../",
        "./",
        "..",
        "sub/deep",
        "a%2Fb",
        "%2e%2e/",
        "%2E",
        "x%00y",
        "?C=N;O=D",
        "x?signature=1",
        "#top",
        "javascript:x",
        "mailto:x@host",
        "http://[broken/",
        "",
    ],
)
def test_what_is_no_child(href: str) -> None:
    page = f'<title>Index of</title><a href="{href}">x</a><a href="y">y</a>'
    assert autoindex_names(page, URL) == ["y"]


@pytest.mark.parametrize(
    ("href", "name"),
    [
        ("x", "x"),
        ("./x", "x"),
        ("/data/d/x", "x"),
        ("http://host:81/data/d/x", "x"),
        (" x ", "x"),
        ("sub/", "sub/"),
        ("with%20space", "with space"),
        ("%E4%B8%AD", "中"),
        ("%FF", "\udcff"),
        ("a&amp;b", "a&b"),
        ("per%2525cent", "per%25cent"),
        ("x%3Fy%23z", "x?y#z"),
        ("x#fragment", "x"),
    ],
)
def test_child(href: str, name: str) -> None:
    assert autoindex_names(f'<A HREF="{href}">x</A>', URL) == [name]


NGINX = """<html><head><title>Index of /data/d/</title></head><body><h1>Index of /data/d/</h1><hr><pre>
<a href="../">../</a>
<a href="sub/">sub/</a>   01-Jan-2024 10:00   -
<a href="a.bin">a.bin</a>  01-Jan-2024 10:00  5
</pre><hr></body></html>"""
PYTHON = """<!DOCTYPE HTML><html lang="en"><head><meta charset="utf-8">
<title>Directory listing for /data/d/</title></head>
<body><h1>Directory listing for /data/d/</h1><hr><ul>
<li><a href="a.bin">a.bin</a></li><li><a href="sub/">sub/</a></li>
</ul><hr></body></html>"""
CADDY = """<!DOCTYPE html><html><head><title>d/</title></head><body><header>
<a href="/">/</a><a href="/data/">data</a></header>
<table><tr><th><a href="?sort=name&order=desc">Name</a></th></tr><tr><td><a href="..">Up</a></td></tr>
<tr><td><a href="./sub/"><span>sub/</span></a></td></tr>
<tr><td><a href="./a.bin"><span>a.bin</span></a></td></tr></table>
<footer><a href="https://caddyserver.com">Caddy</a></footer></body></html>"""


@pytest.mark.parametrize("page", [NGINX, PYTHON, CADDY], ids=["nginx", "python", "caddy"])
def test_pages_as_servers_make_them(page: str) -> None:
    assert autoindex_names(page, URL) == ["a.bin", "sub/"]


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        ("<title>Index of /data/d/</title><a href='../'>../</a>", []),
        ("<h1>Directory listing for /data/d/</h1>", []),
        ("<title>Welcome</title><a href='https://example.org'>x</a>", None),
        ("not even HTML", None),
        ("", None),
    ],
)
def test_page_without_children(page: str, expected: list[str] | None) -> None:
    assert autoindex_names(page, URL) == expected
