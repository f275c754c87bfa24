"""A file that is refused: in one sentence that names it."""

import pytest

from mri.formats import load_scan
from utils.errors import InputError


def refusal(path, *words, load=load_scan, **options) -> str:
    """The sentence with which `load` refuses a file; it names the file and holds these words."""
    with pytest.raises(InputError) as caught:
        load(path, **options)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    for word in words:
        assert word in message, message
    return message
