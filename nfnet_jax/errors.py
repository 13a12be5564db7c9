"""The one exception that means "the request was wrong"."""


class RequestError(ValueError):
  """A request that cannot be met as it stands: bad input, not a failure of the program.

  The message is one or two sentences: what is wrong, with the values, and what to do. The command
  line prints it without a traceback and exits with status 2.
  """
