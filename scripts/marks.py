"""Generated text in pages that people write: it stands between two marks."""

from jepa_fast.errors import require


def between(text: str, begin: str, end: str, shown: str) -> str:
    """`text` with `shown` in place of what stands between its marks, which stay.

    Raises:
        InputError: a mark is missing, or they stand the other way round.
    """
    before, _, rest = text.partition(begin)
    _, closing, after = rest.partition(end)
    require(closing != "", "marks of a page", "not both", f"{begin.strip()}, then {end.strip()}")
    return before + begin + shown + end + after
