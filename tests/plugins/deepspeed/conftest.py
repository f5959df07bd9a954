from collections.abc import Iterator

import pytest

from hooktrain.testing import fork_server
from tests.plugins.sft.runs import base, recipe, run  # noqa: F401 (fixtures)
from tests.preload import DEEPSPEED


@pytest.fixture(scope="package", autouse=True)
def _deepspeed_processes() -> Iterator[None]:
    """Processes are forks of a server that has imported DeepSpeed as well."""
    with fork_server.forked_starts(DEEPSPEED):
        yield
