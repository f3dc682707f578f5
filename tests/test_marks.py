"""Generated text goes between its marks, and a page without them is left alone."""

import pytest

from jepa_fast.errors import InputError
from scripts.marks import between


def test_what_stands_between_the_marks_is_replaced():
    assert between("before <a>old</a> after", "<a>", "</a>", "new") == "before <a>new</a> after"


@pytest.mark.parametrize("text", ["no marks", "<a>open", "closed</a>", "</a>turned<a>"])
def test_a_missing_mark_is_an_error(text):
    with pytest.raises(InputError, match="marks of a page: got 'not both', expected <a>, then </a>"):
        between(text, "<a>", "</a>", "new")
