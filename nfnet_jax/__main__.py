"""The command line: `python -m nfnet_jax VERB ...`, or `nfnet-jax VERB ...`."""

import logging
import signal
import sys
from collections.abc import Sequence

import nfnet_jax
from nfnet_jax import output
from nfnet_jax.cli.interrupt import insisting
from nfnet_jax.cli.stdout import say
from nfnet_jax.cli.verbs import VERBS
from nfnet_jax.config.values import short
from nfnet_jax.errors import RequestError, verdict


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one verb.

  Args:
    argv: the arguments after the program's name; `sys.argv` by default.

  Returns:
    The exit status: 0 for success, 1 for a failure, 2 for an invalid request, 130 if interrupted.
  """
  try:
    try:
      return _run(list(sys.argv[1:] if argv is None else argv))
    finally:
      if argv is None:
        # Python needs seconds to clean up and exit; another Ctrl-C ends that at once.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
  except (Exception, KeyboardInterrupt) as error:
    status, line = verdict(error)
    if line is None:
      raise
    print(f"nfnet-jax: {line}", file=sys.stderr)
    return status


def _run(argv: list[str]) -> int:
  if not argv or argv[0] in ("-h", "--help", "help"):
    say(_usage())
    return 0 if argv else 2
  if argv == ["--version"]:
    say(f"nfnet_jax {nfnet_jax.__version__}")
    return 0
  logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
  logging.getLogger("nfnet_jax").setLevel(logging.INFO)
  logging.getLogger("absl").addFilter(output.is_worth_reading)
  verb = argv[0]
  if verb not in VERBS:
    raise RequestError(f"unknown verb {short(verb)}: choose one of {', '.join(VERBS)}.")
  with insisting():
    VERBS[verb](argv[1:])
  return 0


def _usage() -> str:
  lines = [f"  {name:<10}{verb.__doc__}" for name, verb in VERBS.items()]
  return "\n".join(
    ["usage: nfnet-jax VERB [--FLAG=VALUE ...]", "", *lines, "", "nfnet-jax VERB --help says more."]
  )


if __name__ == "__main__":
  sys.exit(main())
