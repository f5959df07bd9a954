"""``python -m hooktrain``, which is what launchers such as torchrun start."""

from hooktrain.cli.main import main

main()
