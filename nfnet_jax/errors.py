"""Exceptions with self-contained messages; the command line prints them without a traceback."""


class RequestError(ValueError):
  """An invalid request: bad input, not a failure of the program.

  The message says in one or two sentences what is wrong, with the values, and what to do. The
  command line exits with status 2.
  """


class RunError(RuntimeError):
  """A run that cannot continue, for a reason that a traceback would not explain.

  The message says in one or two sentences what happened, with the values, what is kept and what to
  do. The command line exits with status 1.
  """


class DivergedError(RunError):
  """Loss, gradients or parameters stopped being finite."""


_FULL = "RESOURCE_EXHAUSTED: "


def verdict(error: BaseException) -> tuple[int, str | None]:
  """The exit status for an exception, and its message in one line.

  The line is None for an exception that needs its traceback.
  """
  if isinstance(error, KeyboardInterrupt):
    return 130, str(error) or "interrupted."
  text = str(error)
  # NumPy raises MemoryError, and XLA a RuntimeError on any device.
  if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _FULL in text):
    text = (
      f"out of memory ({text.partition(chr(10))[0].strip()}): choose a smaller batch or image size;"
      " a training step needs less with accumulate=2 or more, or model.remat=block."
    )
  elif not isinstance(error, RequestError | RunError):
    return 1, None
  line = " ".join(map(str.strip, text.splitlines()))
  # File names may contain anything, even escape sequences of terminals.
  line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)
  return 2 if isinstance(error, RequestError) else 1, line
