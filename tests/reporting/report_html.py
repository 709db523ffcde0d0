"""HTML of a report, read back with the standard library: is it whole, does it ask for nothing, can it be read aloud."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

VOID = {"meta", "link", "img", "br", "hr", "input", "path", "use", "rect", "circle", "ellipse", "line"}
LOADS = {"src", "srcset", "href", "xlink:href", "action", "poster", "data", "background", "formaction"}
NEVER = {"script", "iframe", "object", "embed", "link", "form", "base", "video", "audio", "foreignobject", "animate"}


@dataclass
class Html(HTMLParser):
    """What a page consists of."""

    text: str
    stack: list[str] = field(default_factory=list)
    tags: Counter[str] = field(default_factory=Counter)
    headings: list[tuple[int, str]] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    anchors: list[str] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)
    alts: list[str] = field(default_factory=list)
    handlers: list[str] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    tables: int = 0
    scrolling: int = 0

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.feed(self.text)
        self.close()
        assert self.stack == [], f"never closed: {self.stack}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.tags[tag] += 1
        self.handlers += [name for name in given if name.startswith("on")]
        self.loads += [value for name, value in given.items() if name in LOADS and not value.startswith("#")]
        self.loads += re.findall(r"url\((?!#)([^)]*)\)", given.get("style", "") + given.get("clip-path", ""))
        self.anchors += [
            value[1:] for name, value in given.items() if name in ("href", "xlink:href") and value[:1] == "#"
        ]
        self.anchors += re.findall(r"url\(#([^)]*)\)", given.get("clip-path", ""))
        self.ids += [given["id"]] if "id" in given else []
        if tag == "img":
            self.alts.append(given.get("alt", ""))
        if tag == "svg":
            assert given.get("role") == "img"
            self.alts.append(given.get("aria-label", ""))
        if re.fullmatch(r"h[1-6]", tag):
            self.headings.append((int(tag[1]), ""))
        if tag == "table":
            self.tables += 1
            self.scrolling += "div.scroll" in self.stack
        if tag not in VOID:
            self.stack.append(f"div.{given['class']}" if tag == "div" and "class" in given else tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.stack.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        assert self.stack, f"</{tag}> closes nothing"
        opened = self.stack.pop()
        assert opened.partition(".")[0] == tag, f"</{tag}> closes <{opened}>"

    def handle_data(self, data: str) -> None:
        if "style" in self.stack:
            return
        self.words.append(data)
        if self.stack and re.fullmatch(r"h[1-6]", self.stack[-1]):
            level, before = self.headings[-1]
            self.headings[-1] = (level, before + data)

    @property
    def said(self) -> str:
        """Every word of the page."""
        return " ".join(" ".join(self.words).split())

    @property
    def sections(self) -> list[str]:
        """The headings of the second level, the table of contents left out."""
        return [text for level, text in self.headings if level == 2 and text != "Contents"]


def checked(path: Path) -> Html:
    """Read a report and assert what holds of every one."""
    data = path.read_bytes()
    assert len(data) < 5_000_000
    page = Html(data.decode("utf-8"))
    assert page.text.startswith("<!doctype html>")
    assert not NEVER & set(page.tags), "nothing that runs, embeds or loads"
    assert page.handlers == []
    assert all(address.startswith("data:image/png;base64,") for address in page.loads), "nothing from outside"
    assert "default-src 'none'" in page.text, "a browser is told to load nothing"
    assert all(page.alts), "every picture and chart is told in words"
    assert len(set(page.ids)) == len(page.ids)
    assert set(page.anchors) <= set(page.ids), "every link leads somewhere"
    levels = [level for level, _ in page.headings]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(later - before <= 1 for before, later in pairwise(levels)), "no level is skipped"
    assert page.tables == page.scrolling, "a table scrolls inside its own box"
    assert "None" not in page.said.replace("None of", ""), "what is missing is said in words"
    assert not re.search(r"\bnan\b|\binf\b", page.said)
    return page
