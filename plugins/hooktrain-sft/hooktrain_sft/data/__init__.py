"""Training data, from files to packed and collated batches."""
