"""DeepSpeed for hooktrain."""
