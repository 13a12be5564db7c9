"""Exceptions that say all there is to say: the command line prints them without a traceback."""


class RequestError(ValueError):
  """A request that cannot be met as it stands: bad input, not a failure of the program.

  The message is one or two sentences: what is wrong, with the values, and what to do. The command
  line exits with status 2.
  """


class RunError(RuntimeError):
  """A run that cannot go on, for a reason that no line of code would explain.

  The message is one or two sentences: what happened, with the values, what is kept and what to do.
  The command line exits with status 1.
  """


class DivergedError(RunError):
  """Loss, gradients or parameters stopped being finite."""


_FULL = "RESOURCE_EXHAUSTED: "


def verdict(error: BaseException) -> tuple[int, str | None]:
  """The exit status that an exception stands for, and the one line that says it all.

  The line is None for one that needs its traceback.
  """
  if isinstance(error, KeyboardInterrupt):
    return 130, str(error) or "interrupted."
  text = str(error)
  # Of NumPy, and of XLA on any device.
  if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _FULL in text):
    text = (
      f"out of memory ({text.partition(chr(10))[0].strip()}): choose a smaller batch or image size;"
      " a training step needs less with accumulate=2 or more, or model.remat=block."
    )
  elif not isinstance(error, RequestError | RunError):
    return 1, None
  line = " ".join(map(str.strip, text.splitlines()))
  # Names of files may hold anything, terminals' escape sequences among it.
  line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)
  return 2 if isinstance(error, RequestError) else 1, line
