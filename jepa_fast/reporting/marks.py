"""Generated text in pages that people write: it stands between two marks."""


def between(text: str, begin: str, end: str, shown: str) -> str:
    """`text` with `shown` in place of what stands between its marks, which stay."""
    before, _, rest = text.partition(begin)
    return before + begin + shown + end + rest.partition(end)[2]
