"""The methods that a module elsewhere does not have, each by torch's text."""

from __future__ import annotations

import pytest
from torch import nn

from zrpc.nn.unsupported import WithoutParts

NAMES = [name for name in vars(WithoutParts) if not name.startswith("__")]


@pytest.mark.parametrize("name", NAMES)
def test_it_says_that_it_is_not_supported(name: str) -> None:
    assert callable(getattr(nn.Module, name)), "one of torch's"
    with pytest.raises(ValueError, match=rf"^Method ``{name}`` not supported for RemoteModule"):
        getattr(WithoutParts(), name)(1, 2, recurse=True)


def test_it_names_what_to_use_instead() -> None:
    with pytest.raises(
        ValueError, match=r"``parameters`` not supported for RemoteModule. Please use ``remote_parameters``"
    ):
        WithoutParts().parameters()


def test_the_parts_of_a_module_that_holds_one_are_not_walked_by_mistake() -> None:
    outer = nn.Sequential(WithoutParts())
    with pytest.raises(ValueError, match="``named_modules`` not supported"):
        list(outer.parameters())
