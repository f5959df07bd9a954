"""Adapters on a frozen base: LoRA and the other methods of PEFT."""
