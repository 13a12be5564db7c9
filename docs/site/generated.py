"""The pages of the site that are made while it is built."""

import cards
import commands
import configuration
import families
import interface


def pages() -> dict[str, str]:
  """Their Markdown, by their path below `docs/`."""
  return {
    "networks/index.md": cards.index(),
    **{f"networks/{family.page}.md": cards.page(family) for family in families.FAMILIES},
    "reference/configuration.md": configuration.page(),
    "reference/commands.md": commands.page(),
    **{f"reference/api/{room}.md": interface.page(room) for room in interface.ROOMS},
  }
