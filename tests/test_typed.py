"""In tests, every function of the packages is checked as it is called: types, and shapes."""

import pytest
import torch

from wscore import svd
from wsrun.models.chat import user


def test_a_wrong_type_and_a_wrong_shape_are_found():
    """of a function with arrays and of one without; the message names the parameter"""
    with pytest.raises(Exception, match="text") as wrong:
        user(3)
    assert "beartype" in type(wrong.value).__module__
    with pytest.raises(Exception, match="W|dW") as wrong:
        svd(torch.ones(2, 2, 2))
    assert "jaxtyping" in type(wrong.value).__module__
