"""The exceptions that users meet: their input is at fault, or the run cannot go on; both without a traceback."""


class InputError(ValueError):
    """Bad input, told in one line that names what is wrong and where.

    Commands print it without a traceback and exit with status 2. Anything else that escapes is a bug of ours and keeps
    its traceback. `details` are lines that help to do it right, printed below.
    """

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message)
        self.details = details


def require(condition: bool, argument: str, got: object, expected: str) -> None:
    """Raise InputError naming the argument, what came and what was expected, unless `condition` holds."""
    if not condition:
        raise InputError(f"{argument}: got {got!r}, expected {expected}")


class RunError(RuntimeError):
    """A run that cannot go on, through no fault of its input: an energy that is not finite, say. Exit status 1."""
