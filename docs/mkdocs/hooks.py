"""Pages that are made while the site is built: the READMEs, the changelog, and the tutorial from its script.

Links between files of the repository become links between pages; one to a file that has no page is a warning, and with
``--strict`` an error.
"""

from __future__ import annotations

import logging
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

log = logging.getLogger("mkdocs.plugins.steerkit")
ROOT = Path(__file__).resolve().parents[2]
LATER = {"study.md", "claims.md"}
"""Pages of the nav that may not be there yet."""
_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(\]\()([^)\s#]+)(#[^)\s]*)?(\))")


def made_pages() -> dict[str, str]:
    """Page -> the file of the repository that it is made from."""
    pages = {"index.md": "README.md", "changelog.md": "CHANGELOG.md", "tutorial.md": "docs/tutorial.py"}
    pages["benchmarks/README.md"] = "benchmarks/README.md"
    for readme in sorted((ROOT / "plugins").glob("*/README.md")):
        name = readme.relative_to(ROOT).as_posix()
        pages[name] = name
    return pages


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Leave out of the nav what is still to come."""
    config.nav = [part for entry in config.nav or [] if (part := _there(entry)) is not None]
    return config


def _there(entry: Any) -> Any:
    if isinstance(entry, dict):
        ((title, value),) = entry.items()
        kept = _there(value)
        return None if kept is None else {title: kept}
    if isinstance(entry, list):
        return [part for item in entry if (part := _there(item)) is not None] or None
    return None if entry in LATER and not (ROOT / "docs" / entry).exists() else entry


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages whose source lies outside docs/, or is a script."""
    for uri, source in made_pages().items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, uri, content=from_script(text) if source.endswith(".py") else text))
    return files


def from_script(text: str) -> str:
    """Markdown of a script with percent cells: comments of ``# %% [markdown]`` cells, code of the others."""
    parts = re.split(r"^# %%(.*)\n", text, flags=re.MULTILINE)[1:]  # what stands before the first cell is for the test
    page = []
    for kind, body in zip(parts[::2], parts[1::2], strict=True):
        if "[markdown]" in kind:
            page.append("\n".join(line.removeprefix("#").removeprefix(" ") for line in body.strip().splitlines()))
        else:
            page.append(f"```python\n{body.strip()}\n```")
    return "\n\n".join(page) + "\n"


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links to files of the repository -> links to their pages."""
    sources = {source: uri for uri, source in made_pages().items()}
    own = made_pages().get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def moved(match: re.Match[str]) -> str:
        before, target, anchor, after = match.groups(default="")
        if re.match(r"[a-z]+:", target):
            return match[0]
        place = posixpath.normpath(posixpath.join(posixpath.dirname(own), target))
        there = ROOT / place
        if not there.exists() and not (place.startswith("docs/") and files.get_file_from_path(place[5:])):
            log.warning(f"{own}: the link {target!r} leads nowhere")
            return match[0]
        if there.is_dir():
            place = f"{place}/README.md" if (there / "README.md").exists() else f"docs/{there.name}.md"
        uri = sources.get(place, place.removeprefix("docs/") if place.startswith("docs/") else None)
        if uri is None:
            log.warning(f"{own}: the link {target!r} leads to a file that is no page of the site")
            return match[0]
        start = posixpath.dirname(page.file.src_uri)
        return before + posixpath.relpath(uri, start or ".") + anchor + after

    pieces, last = [], 0
    for fence in _FENCE.finditer(markdown):
        pieces += [_LINK.sub(moved, markdown[last : fence.start()]), fence[0]]
        last = fence.end()
    return "".join([*pieces, _LINK.sub(moved, markdown[last:])])
