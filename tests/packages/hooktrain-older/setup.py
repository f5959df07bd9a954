"""As packages were described when this was written."""

from setuptools import setup

setup(
    name="hooktrain-older",
    version="0.7",
    description="Plugins for hooks as they were",
    long_description=open("README.md").read(),  # noqa: SIM115
    author="Methuselah",
    py_modules=["older_declared", "older_undeclared", "older_tags"],
    install_requires=["hooktrain"],
    entry_points={
        "hooktrain": [
            "older_declared = older_declared",
            "older_undeclared = older_undeclared",
            "older_tags = older_tags",
        ]
    },
)
