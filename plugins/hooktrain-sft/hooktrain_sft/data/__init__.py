"""Training data: from files to packed, collated batches."""
