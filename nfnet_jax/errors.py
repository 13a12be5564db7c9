"""Two exceptions that say all there is to say: the command line prints them without a traceback."""


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
