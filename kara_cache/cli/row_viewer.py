"""The full-screen viewer of `kara row URL view`: what it shows is computed, a terminal only draws it."""

from __future__ import annotations

import curses
import locale
from collections.abc import Callable
from contextlib import suppress

from kara_cache.cli.row_text import Rows, cut, row_lines, shown, width
from kara_cache.errors import FormatError

_HINTS = (  # the longest that fits
    "[N]ext [P]revious [T]op [B]ottom [G]o to row [/] search [arrows] scroll [Q]uit",
    "[N]ext [P]rev [T]op [B]ottom [G]o to [/]search [Q]uit",
    "N P T B G / Q",
    "",
)
_SIDEWAYS = 8  # columns for one press of an arrow
_ASK_EVERY = 64  # rows searched between two looks at the keyboard
_LOOK_AGAIN_MS = 250  # a resize just before curses waits is seen when it waits again
_ESCAPE, _BACKSPACES, _ENTERS = "\x1b", ("\x7f", "\b", "backspace"), ("\n", "\r", "enter")
_KEYS = {
    curses.KEY_UP: "up",
    curses.KEY_DOWN: "down",
    curses.KEY_LEFT: "left",
    curses.KEY_RIGHT: "right",
    curses.KEY_PPAGE: "page up",
    curses.KEY_NPAGE: "page down",
    curses.KEY_HOME: "t",
    curses.KEY_END: "b",
    curses.KEY_BACKSPACE: "backspace",
    curses.KEY_ENTER: "enter",
    curses.KEY_RESIZE: "resize",
}


class RowViewer:
    """One row at a time, and where in it the screen is."""

    def __init__(self, rows: Rows, begin: int = 0) -> None:
        """`begin` past the end is the last row."""
        self._rows = rows
        self._count = len(rows)
        self._prompt: str | None = None  # "Go to row: " or "/" while something is typed
        self._typed = ""
        self._pattern = ""
        self._message = ""
        self._index = self._top = self._left = self._widest = 0
        self._lines: list[str] = []
        self._go(min(begin, self._count - 1))

    @property
    def index(self) -> int:
        return self._index

    def press(self, key: str, height: int, *, stop: Callable[[], bool] = lambda: False) -> bool:
        """What a key does; False when it ends the viewer. `stop` interrupts a search."""
        if self._prompt is not None:
            self._type(key, stop)
            return True
        key = key.lower() if len(key) == 1 else key
        if key in ("q", _ESCAPE):
            return False
        self._message = ""
        page = max(1, height - 3)
        if key in ("n", " "):
            self._step(1)
        elif key == "p":
            self._step(-1)
        elif key in ("g", "/"):
            self._prompt, self._typed = ("Go to row: " if key == "g" else "/"), ""
        elif key in ("t", "b"):
            self._top, self._left = (0 if key == "t" else len(self._lines)), 0
        elif key in ("up", "down", "page up", "page down"):
            self._top += {"up": -1, "down": 1, "page up": -page, "page down": page}[key]
        elif key in ("left", "right"):
            self._left += -_SIDEWAYS if key == "left" else _SIDEWAYS
        self._stay_inside(height)
        return True

    def frame(self, height: int, columns: int) -> list[str]:
        """The lines of the screen, each `columns` wide: a bar, the row, a bar."""
        self._stay_inside(height)
        bars = [_filled(self._title(), columns), _filled(self._foot(columns), columns)]
        if height < 2 or columns < 1:
            return bars[: max(0, height)] if columns > 0 else []
        body = self._lines[self._top : self._top + height - 2]
        body += [""] * (height - 2 - len(body))
        return [bars[0], *(_filled(cut(line, self._left, columns), columns) for line in body), bars[1]]

    def _title(self) -> str:
        if not self._count:
            return " Index: -  (no rows)"
        lines = len(self._lines)
        return f" Index: {self._index}  of {self._count}  line {min(self._top + 1, lines)} of {lines}"

    def _foot(self, columns: int) -> str:
        if self._prompt is not None:
            text = shown(self._prompt + self._typed) + "_"
            return text if width(text) <= columns else cut(text, width(text) - columns, columns)
        if self._message:
            return shown(self._message)
        return next(hint for hint in _HINTS if len(hint) <= columns)

    def _go(self, index: int) -> None:
        self._index, self._top, self._left = max(0, index), 0, 0
        self._lines = self._load(self._index)
        self._widest = max(map(width, self._lines), default=0)

    def _load(self, index: int) -> list[str]:
        if not self._count:
            return []
        try:
            return [shown(line) for line in row_lines(self._rows[index])]
        except FormatError as exc:
            return [shown(f"! {exc}")]

    def _step(self, by: int) -> None:
        index = self._index + by
        if 0 <= index < self._count:
            self._go(index)
        elif self._count:
            self._message = " this is the last row" if by > 0 else " this is the first row"

    def _stay_inside(self, height: int) -> None:
        self._top = max(0, min(self._top, len(self._lines) - max(1, height - 2)))
        self._left = max(0, min(self._left, self._widest - 1))

    def _type(self, key: str, stop: Callable[[], bool]) -> None:
        prompt = self._prompt
        if key == _ESCAPE:
            self._prompt = None
        elif key in _BACKSPACES:
            self._typed = self._typed[:-1]
        elif key in _ENTERS:
            self._prompt = None
            if prompt == "/":
                self._search(self._typed or self._pattern, stop)
            else:
                self._go_to(self._typed)
        elif len(key) == 1 and key.isprintable():
            self._typed += key

    def _go_to(self, typed: str) -> None:
        number = typed.strip()
        if not (number.isascii() and number.isdigit()) or int(number[:20]) >= self._count:
            self._message = f" no row {number[:20] or '?'}: there are {self._count}, the first is 0"
        else:
            self._go(int(number))

    def _search(self, pattern: str, stop: Callable[[], bool]) -> None:
        """From the next row to the end, then from the first one, in what a row looks like."""
        self._pattern = pattern
        if not pattern or not self._count:
            return
        for step in range(1, self._count + 1):
            if step % _ASK_EVERY == 0 and stop():
                self._message = f" search stopped after {step} rows"
                return
            index = (self._index + step) % self._count
            found = next((i for i, line in enumerate(self._load(index)) if pattern in line), None)
            if found is not None:
                self._go(index)
                self._top = found
                return
        self._message = f" no row has {pattern}"


def view(rows: Rows, begin: int = 0) -> None:
    """Takes over the terminal until Q. Raises curses.error where the terminal cannot be used."""
    locale.setlocale(locale.LC_ALL, "")  # curses draws what the locale can write
    viewer = RowViewer(rows, begin)
    curses.setupterm()  # says by an error what initscr says by ending the process
    curses.wrapper(_loop, viewer)


def _loop(screen: curses.window, viewer: RowViewer) -> None:
    if hasattr(curses, "set_escdelay"):
        curses.set_escdelay(25)  # ms; Escape alone should not take a second
    with suppress(curses.error):  # a terminal that cannot hide its cursor
        curses.curs_set(0)

    def stop() -> bool:
        screen.nodelay(True)
        try:
            return screen.getch() != curses.ERR
        finally:
            screen.timeout(_LOOK_AGAIN_MS)

    screen.timeout(_LOOK_AGAIN_MS)
    while True:
        _draw(screen, viewer)
        key = _key(screen)
        if key and not viewer.press(key, screen.getmaxyx()[0], stop=stop):
            return


def _key(screen: curses.window) -> str:
    """A character, or a name of `_KEYS`; "" for any other key."""
    try:
        found = screen.get_wch()
    except curses.error:  # no key yet, or interrupted, by a resize for instance
        return ""
    return found if isinstance(found, str) else _KEYS.get(found, "")


def _draw(screen: curses.window, viewer: RowViewer) -> None:
    height, columns = screen.getmaxyx()
    encoding = screen.encoding
    lines = viewer.frame(height, columns)
    screen.erase()
    for number, line in enumerate(lines):
        style = curses.A_REVERSE if number in (0, len(lines) - 1) else curses.A_NORMAL
        text = line.encode(encoding, "replace").decode(encoding)
        # The last cell: it is drawn, but the cursor has nowhere to go. Or the screen has just shrunk.
        with suppress(curses.error):
            screen.addstr(number, 0, text, style)
    screen.refresh()


def _filled(text: str, columns: int) -> str:
    text = cut(text, 0, columns)
    return text + " " * (columns - width(text))
