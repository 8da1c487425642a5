"""Kernels of our own for BERT's encoder, as TensorRT plugins: built with nvcc for the GPU at hand.

What is where:

    cuda/          CUDA C++: linear, attention, norm (kernels), plugins (TensorRT's side), interface (C)
    compiler       nvcc and TensorRT's headers: finding them, building, keeping what was built
    library        the built library: registered with TensorRT, and its kernels called directly
    tuning         which tile shape of a linear layer is fastest here
    definition     BERT from plugins alone
    packing        sentences packed without padding
"""
