"""Engines: a graph compiled for a machine, and run."""
