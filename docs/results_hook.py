"""Puts every file of benchmarks/results into the results page, so that the site shows what the scripts wrote."""

import re
from pathlib import Path
from typing import Any


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    if page.file.src_uri != "results.md":
        return markdown
    folder = Path(config.config_file_path).parent / "benchmarks" / "results"
    found = [file.read_text() for file in sorted(folder.glob("*.md"))]
    # One heading level down, and no links to files that are not part of the site.
    found = [re.sub(r"^#", "##", text, flags=re.MULTILINE) for text in found]
    found = [re.sub(r"!?\[([^]]*)\]\((?!https?:)[^)]*\)", r"\1", text) for text in found]
    return "\n\n".join([markdown, *found])
