"""Links of pages: on GitHub they lead through the repository, on the site to its pages.

The site holds what is in `docs/`, the changelog, how to contribute, and every file of the
repository that its pages link to, under its path in the repository. The README's place is taken by
the home page.
"""

import os
import pathlib
import re
from collections.abc import Iterator

_LINK = re.compile(r"(?<=\]\()(?!\w+:|#|/)([^)#\s]+)(?=[)#])")
_OF_PROJECT = ("CHANGELOG.md", "CONTRIBUTING.md")
_SECTION = re.compile(r"^<!-- README: (.+) -->$", re.MULTILINE)


def outside(root: pathlib.Path) -> list[str]:
  """Paths of the files that belong to the site and are not in `docs/`."""
  waiting = [*_OF_PROJECT, *(str(path.relative_to(root)) for path in root.glob("docs/*.md"))]
  seen = {"README.md", *waiting}
  while waiting:
    page = waiting.pop()
    text = include((root / page).read_text(), page, root)
    found = [target for target in targets(text, page) if target not in seen]
    found = [target for target in dict.fromkeys(found) if (root / target).is_file()]
    seen.update(found)
    waiting += [path for path in found if path.endswith(".md")]
  return sorted(path for path in seen - {"README.md"} if not path.startswith("docs/"))


def targets(text: str, here: str) -> Iterator[str]:
  """Paths in the repository that a page links to.

  Args:
    text: its Markdown.
    here: its own path.
  """
  for link in _LINK.findall(text):
    yield os.path.normpath(os.path.join(os.path.dirname(here), link))


def rewrite(text: str, here: str) -> str:
  """The page with its links to files of the repository as links to files of the site."""
  folder = os.path.dirname(uri_of(here))

  def on_site(link: re.Match) -> str:
    [target] = targets(f"]({link[0]})", here)
    return os.path.relpath(uri_of(target), folder or ".")

  return _LINK.sub(on_site, text)


def include(text: str, here: str, root: pathlib.Path) -> str:
  """The page with sections of the README in place of `<!-- README: TITLE -->`."""

  def section(title: re.Match) -> str:
    readme = (root / "README.md").read_text()
    heading = f"\n## {title[1]}\n"
    if heading not in readme:
      raise ValueError(f"{here}: the README has no section {title[1]!r}.")
    found = readme.split(heading)[1].split("\n## ")[0].strip()
    folder = os.path.dirname(here) or "."
    return _LINK.sub(lambda link: os.path.relpath(link[0], folder), found)

  return _SECTION.sub(section, text)


def uri_of(path: str) -> str:
  """Where a file of the repository is on the site."""
  if path == "README.md":
    return "index.md"
  return path.removeprefix("docs/").removesuffix(".ipynb") + (
    ".md" if path.endswith(".ipynb") else ""
  )


def path_of(uri: str, root: pathlib.Path) -> str:
  """The path in the repository of a file of the site."""
  return uri if not (root / "docs" / uri).exists() and (root / uri).exists() else f"docs/{uri}"
