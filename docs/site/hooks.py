"""Hooks of MkDocs: adds the pages that are generated, and makes links lead to pages of the site."""

import pathlib
import sys

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import generated  # noqa: E402  (all need the package)
import links  # noqa: E402
import notebook  # noqa: E402


def on_files(files: Files, config: MkDocsConfig) -> Files:
  """Adds generated pages, and the files outside of `docs/` that pages link to."""
  text, pictures = notebook.page(ROOT / "docs/quickstart.ipynb")
  pages = {**generated.pages(), "quickstart.md": text, **pictures}
  for uri, content in pages.items():
    files.append(File.generated(config, uri, content=content))
  for path in links.outside(ROOT):
    files.append(File.generated(config, links.uri_of(path), abs_src_path=str(ROOT / path)))
  return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
  """Fills in sections of the README, and points links to where files are on the site."""
  here = links.path_of(page.file.src_uri, ROOT)
  return links.rewrite(links.include(markdown, here, ROOT), here)
