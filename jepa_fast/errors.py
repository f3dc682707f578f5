"""The exceptions that users meet: their input is at fault, or the run cannot go on; both without a traceback."""

# Characters of a value that are shown of it: files can hold long ones.
MOST_SHOWN = 200


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
        raise InputError(f"{argument}: got {shown(got)}, expected {expected}")


def shown(value: object) -> str:
    """A value as an error shows it."""
    text = repr(value)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


def printable(text: str) -> str:
    """`text` without what steers a terminal, which a name or a file may hold: such characters are shown as \\x1b."""
    return "".join(
        character if character.isprintable() or character in "\n\t" else repr(character)[1:-1] for character in text
    )


class RunError(RuntimeError):
    """A run that cannot go on, through no fault of its input: an energy that is not finite, say. Exit status 1."""
