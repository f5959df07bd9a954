"""Packages export the names that their ``__init__`` imports for type checkers, and load each when it is used."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

import pytest

PACKAGES = ["hooktrain", "hooktrain.bench", "hooktrain.testing"]
PACKAGES += [path.parent.name for path in sorted((Path(__file__).parents[1] / "plugins").glob("*/*/__init__.py"))]


@pytest.mark.parametrize("name", PACKAGES)
def test_every_name_is_loaded_and_listed(name):
    package = importlib.import_module(name)
    assert package.__all__ == sorted(set(package.__all__)) and package.__all__
    assert set(package.__all__) <= set(dir(package))
    assert all(getattr(package, each).__class__ for each in package.__all__)
    modules = {module.name for module in pkgutil.iter_modules(package.__path__)}
    assert not modules & set(package.__all__), "a module of that name takes its place once it is imported"
    with pytest.raises(AttributeError, match=f"'{name}'.*'nothing'"):
        getattr(package, "nothing")  # noqa: B009


def test_a_name_stands_once(tmp_path, monkeypatch):
    (tmp_path / "parcel.py").write_text(
        "from typing import TYPE_CHECKING\nfrom hooktrain import lazy_exports\n"
        "if TYPE_CHECKING:\n    from fractions import Fraction as Fraction\n    from decimal import Decimal\n"
        "__getattr__, __dir__, __all__ = lazy_exports(__name__, __file__)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    parcel = importlib.import_module("parcel")
    assert parcel.__all__ == ["Fraction"], "without `as` a name is for annotations in the file alone"
    assert "Fraction" not in vars(parcel)
    assert parcel.Fraction(1, 2) == 0.5
    assert "Fraction" in vars(parcel), "it is loaded once"
