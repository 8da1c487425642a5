"""Calibration tables: in memory, as TensorRT's cache text, as JSON with provenance."""
