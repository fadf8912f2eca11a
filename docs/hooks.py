"""Hooks of the website (mkdocs.yml): it is laid out like the repository, so that links are the same on both."""

import re
from pathlib import Path

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

PAGES = ("*.md", "docs/*.md", "checkpoints/*.md", "results/*.md", "results/small/*.md", "examples/*.md")
IMAGES = ("docs/**/*.jpg", "docs/**/*.png", "results/*.jpg", "results/*.png")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Replace the content of docs/ by all pages and images, under their paths in the repository."""
    root = Path(config.config_file_path).parent
    for file in [file for file in files if file.src_dir == config.docs_dir]:
        files.remove(file)
    for pattern in PAGES + IMAGES:
        for path in sorted(root.glob(pattern)):
            files.append(File.generated(config, path.relative_to(root).as_posix(), abs_src_path=str(path)))
    return files


class Fields(griffe.Extension):
    """Docstrings of classes have a line "name: meaning" per field; the site shows these lines as a list."""

    def on_class(self, *, cls: griffe.Class, **kwargs: object) -> None:
        if cls.docstring:
            cls.docstring.value = re.sub(r"^(\w+(, \w+)*): (?=\S)", r"- **\1**: ", cls.docstring.value, flags=re.M)
