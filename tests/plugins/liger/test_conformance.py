"""The plugin ``liger`` keeps to the rules of the platform where it is not used; its kernels need a GPU."""

from hooktrain.testing import conformance

test_conformance = conformance("liger")
