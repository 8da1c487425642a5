"""Activations become histograms: one pass, every tensor, memory that does not grow with the data."""
