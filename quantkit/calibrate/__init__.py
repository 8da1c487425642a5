"""Histograms become ranges: one calibrator a module."""
