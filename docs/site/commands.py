"""Writes the page on the command line from its verbs and the table in `nfnet_jax/cli/flags.py`."""

import contextlib
import io

import configuration

from nfnet_jax.cli.flags import EXAMPLES, FLAGS
from nfnet_jax.cli.verbs import VERBS

_START = """# Commands

`nfnet-jax VERB` is the same as `python -m nfnet_jax VERB`. Flags are written `--NAME=VALUE` or
`--NAME VALUE`; those that are on or off `--NAME` and `--noNAME`.
[The command line](../command_line.md) explains configs, classes, exit status and caches.
`nfnet-jax VERB --help` prints what is on this page.
"""
_CONFIG = "`--config.KEY=VALUE` changes a key of the config: see [Configuration](configuration.md)."


def page() -> str:
  """The page as Markdown, with a heading for each verb and each of its flags."""
  return "\n\n".join([_START, *map(_section, FLAGS)]) + "\n"


def _section(name: str) -> str:
  """What there is to say on a verb, or on one of the kinds of `benchmark`."""
  verb, *_ = name.split()
  parts = [f"## {name}", VERBS[verb].__doc__ or "", _block(_usage(name))]
  if examples := EXAMPLES.get(name):
    parts += [_block("\n".join(examples))]
  if "config" in FLAGS[name]:
    parts += [_CONFIG]
  slug = name.replace(" ", "-")
  parts += [
    configuration.entry(f"--{flag}", key, level=3, anchor=f"{slug}-{flag}")
    for flag, key in FLAGS[name].items()
  ]
  return "\n\n".join(parts)


def _usage(name: str) -> str:
  """The first line of the help."""
  verb, *kind = name.split()
  said = io.StringIO()
  with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
    VERBS[verb]([*kind, "--help"])
  return said.getvalue().partition("\n")[0].removeprefix("usage: ")


def _block(text: str) -> str:
  return f"```text\n{text}\n```"
