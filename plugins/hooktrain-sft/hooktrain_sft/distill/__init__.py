"""Distillation: losses that compare a model with a teacher, beside it or ahead."""
