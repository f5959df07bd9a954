"""The plugin ``liger``: transformers models with Liger's kernels, and its fused linear cross-entropy as the loss."""
