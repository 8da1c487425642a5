"""A stand-in for PyCUDA: host memory plays the device's. Only what quantkit uses, under the real names."""
