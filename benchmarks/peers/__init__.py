"""One driver for each program that hooktrain is compared with; it runs in an environment of its own."""
