"""Benchmarks of hooktrain, alone and compared with other programs; see README.md."""
