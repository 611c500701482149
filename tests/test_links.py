"""Pages refer to what is there: pages, headings, files, commands, works. Nothing is fetched."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

import topk_np
from tests.pages import DOCS, NOTEBOOKS, PAGES, ROOT
from topk_np.cli import COMMANDS

PACKAGE = Path(topk_np.__file__).parent  # which is elsewhere where a wheel is tested
SOURCES = sorted(PACKAGE.rglob("*.py"))
BIBLIOGRAPHY = DOCS / "bibliography.md"

FENCE = re.compile(r"^(`{3,})([^\n]*)\n(.*?)^\1$", re.MULTILINE | re.DOTALL)
SHOWS = re.compile(r"\{(?:image|figure|include)\} (\S+)")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)|\{doc\}`[^`]*?<?([^`<>]+)>?`")
ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")
CITATION = re.compile(r"([A-Z][a-z]+)(?:,? et al\.| and [A-Z][a-z]+),? ((?:19|20)\d\d)\b")

each_page = pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)


def links(path: Path) -> tuple[list[str], list[str]]:
    """The links and pictures of a page: addresses elsewhere, and places in the project."""
    text = path.read_text(encoding="utf-8")
    shown = [found[1] for fence in FENCE.finditer(text) if (found := SHOWS.match(fence[2]))]
    prose = FENCE.sub("", text)
    bare = re.sub(r"(?<!\})`[^`\n]*`(?!\])", "", prose)  # brackets in code are no links
    targets = [link or page for link, page in LINK.findall(bare)] + shown
    return (
        [target for target in targets if "//" in target],
        [target for target in targets if "//" not in target],
    )


def place(page: Path, target: str) -> Path:
    """The file that a link of a page goes to; pages of the reference are made from its list."""
    path = page.parent / target if target else page
    if path.parent.name == "generated":
        listed = re.findall(r"^   (\S+)$", (DOCS / "reference.md").read_text("utf-8"), re.M)
        return DOCS / "reference.md" if path.name.removesuffix(".html") in listed else path
    return path if path.suffix else path.with_suffix(".md")


def headings(path: Path) -> set[str]:
    """The anchors of a page's headings, as MyST and GitHub make them."""
    found = re.findall(r"^#{1,3} (.*)$", FENCE.sub("", path.read_text(encoding="utf-8")), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


@each_page
def test_every_link_within_the_project_has_an_end(path: Path) -> None:
    for target in links(path)[1]:
        name, _, anchor = target.partition("#")
        file = place(path, name)
        assert file.is_file(), f"{path.name} links to {target}"
        assert not anchor or anchor in headings(file), f"{path.name} links to {target}"


@each_page
def test_every_address_is_well_formed(path: Path) -> None:
    for address in links(path)[0]:
        parts = urlsplit(address)
        assert parts.scheme == "https", address
        assert re.fullmatch(r"[\w-]+(\.[\w-]+)+", parts.netloc), address
        if parts.netloc == "arxiv.org":
            assert re.fullmatch(r"/abs/\d{4}\.\d{4,5}", parts.path), address


@pytest.mark.parametrize("path", [*PAGES, *SOURCES], ids=lambda path: path.stem)
def test_every_file_that_is_named_exists(path: Path) -> None:
    named = re.findall(
        r"`((?:topk_np|tests|docs|notebooks|\.ci)/[\w./-]*)`", path.read_text(encoding="utf-8")
    )
    places = {name: (PACKAGE.parent if name.startswith("topk_np/") else ROOT) for name in named}
    assert [name for name, folder in places.items() if not (folder / name).exists()] == []


@each_page
def test_every_command_that_is_named_exists(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    commands = {module.__name__.rpartition(".")[2] for module in COMMANDS}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][a-z-]*):", makefile, re.MULTILINE))
    assert set(re.findall(r"python -m topk_np ([a-z]\w*)", text)) <= commands
    shell = "".join(fence[3] for fence in FENCE.finditer(text) if fence[2] in ("sh", "console"))
    made = re.findall(r"`make ([a-z][a-z-]*)", text) + re.findall(r"^\W*make (\S+)", shell, re.M)
    assert set(made) <= targets


def test_every_figure_is_shown_and_every_picture_says_what_it_shows() -> None:
    shown: set[str] = set()
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        for fence in FENCE.finditer(text):
            if re.match(r"\{(image|figure)\}", fence[2]):
                assert re.match(r":alt: .{40}", fence[3]), f"{path.name}: {fence[2]}"
            if path.parent == NOTEBOOKS and re.search(r"\b(plt\.|fig, )", fence[3]):
                draws = "subplots(" in fence[3]
                assert not draws or "alt: " in fence[3], f"{path.name}: {fence[3][:60]}"
        for words, picture in re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", text):
            assert len(words) > 40, f"{path.name}: {picture}"
        shown |= {Path(target).stem for target in links(path)[1]}
    drawn = {path.stem for path in (DOCS / "figures").iterdir() if path.suffix in (".png", ".svg")}
    assert drawn <= shown


def cited(find: Callable[[str], list[Any]]) -> set[Any]:
    """The works that are cited anywhere except in the bibliography."""
    texts = [*SOURCES, *(path for path in PAGES if path != BIBLIOGRAPHY)]
    return {work for path in texts for work in find(path.read_text(encoding="utf-8"))}


def test_every_work_that_is_cited_is_in_the_bibliography_and_the_other_way_round() -> None:
    text = BIBLIOGRAPHY.read_text(encoding="utf-8")
    listed = ARXIV.findall(text)
    assert len(listed) == len(set(listed))
    assert set(listed) == cited(
        lambda page: [*ARXIV.findall(page), *re.findall(r"arxiv\.org/abs/(\d{4}\.\d{4,5})", page)]
    )
    assert re.findall(r"\[arXiv:(.*?)\]\(https://arxiv.org/abs/(?!\1\))", text) == []


def test_every_author_and_year_that_is_cited_is_in_the_bibliography() -> None:
    entries = re.findall(r"^- (.*?)(?=^- |^#|\Z)", BIBLIOGRAPHY.read_text("utf-8"), re.M | re.S)
    missing = [
        f"{author} {year}"
        for author, year in sorted(cited(lambda page: CITATION.findall(" ".join(page.split()))))
        if not any(author in entry and f"{year}." in entry for entry in entries)
    ]
    assert missing == []
