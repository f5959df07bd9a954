import pytest

from tests.plugins.sft.runs import base, recipe, run  # noqa: F401 (fixtures)
from tests.preload import DEEPSPEED


def pytest_itemcollected(item: pytest.Item) -> None:
    item.add_marker(pytest.mark.preload(*DEEPSPEED))
