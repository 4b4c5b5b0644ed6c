"""What `mkdocs build` needs beyond its configuration: links that leave docs/, and the colours of code.

A page may link to a file of the repository by its relative path, which works where the repository is browsed. In the
site a picture is copied beside the pages, and any other file is linked to where the repository is kept.
"""

import logging
import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pygments.formatters import HtmlFormatter

DOCS = Path(__file__).parent
ROOT = DOCS.parent
# picture or link, text, path, anchor
UPWARD = re.compile(r"(!?)\[([^\]]*)\]\(((?:\.\./)+[^)#\s]+)(#[^)\s]*)?\)")
STYLE = """
.wy-nav-content { max-width: 1100px; }
.rst-content table.docutils td, .rst-content table.docutils th { white-space: normal; }
"""

# mkdocs counts the warnings of loggers below its own, and a strict build with one fails
log = logging.getLogger("mkdocs.hooks.latte_fast")


def leaves_docs(page: File, path: str) -> str | None:
    """The linked file, counted from the repository's top, or None where it lies in docs/."""
    target = Path(os.path.normpath(DOCS / Path(page.src_uri).parent / path))
    return None if target.is_relative_to(DOCS) else Path(os.path.relpath(target, ROOT)).as_posix()


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the style sheets and every picture outside docs/ that a page shows."""
    colours = HtmlFormatter(style="default").get_style_defs(".codehilite")
    files.append(File.generated(config, "highlight.css", content=colours))
    files.append(File.generated(config, "site.css", content=STYLE))
    pictures = {
        target
        for page in files.documentation_pages()
        for shown, _, path, _ in UPWARD.findall(page.content_string)
        if shown and (target := leaves_docs(page, path)) and (ROOT / target).is_file()
    }
    for target in sorted(pictures):
        files.append(File.generated(config, target, abs_src_path=str(ROOT / target)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Points links that leave docs/ at the copied picture or at the repository; warns of those that lead nowhere."""

    def link(found: re.Match[str]) -> str:
        shown, text, path, anchor = found.groups()
        target = leaves_docs(page.file, path)
        if target is None:
            return found[0]
        if not (ROOT / target).exists():
            log.warning(f"{page.file.src_uri}: {path} is not in the repository")
        if shown:
            return f"![{text}]({os.path.relpath(target, Path(page.file.src_uri).parent)})"
        kind = "tree" if (ROOT / target).is_dir() else "blob"
        return f"[{text}]({(config.repo_url or '').rstrip('/')}/{kind}/main/{target}{anchor or ''})"

    return UPWARD.sub(link, markdown)
