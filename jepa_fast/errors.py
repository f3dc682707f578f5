"""The one exception that means: the user's input is at fault, not the program."""


class InputError(ValueError):
    """Bad input, told in one line that names what is wrong and where.

    Commands print it without a traceback and exit with status 2. Anything else that escapes is a bug of ours and keeps
    its traceback.
    """


class RunError(RuntimeError):
    """A run that cannot go on, through no fault of its input: an energy that is not finite, say. Exit status 1."""
