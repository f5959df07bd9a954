from tests.plugins.sft.runs import base, recipe, run  # noqa: F401 (fixtures)
