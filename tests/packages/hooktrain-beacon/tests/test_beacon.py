from __future__ import annotations

import pytest
from hooktrain import RecipeError
from hooktrain.testing import conformance

# without a server: the plugin is installed and unused
test_conformance = conformance("beacon")


def test_an_address_that_is_none_is_refused(run_tiny):
    with pytest.raises(RecipeError, match=r"beacon\.url: given 'localhost:80', expected an address such as http"):
        run_tiny(beacon={"url": "localhost:80"})
