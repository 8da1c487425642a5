"""The OpenVINO backend, the default on a CPU."""
