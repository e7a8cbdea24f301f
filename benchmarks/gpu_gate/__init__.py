"""The sections of `benchmarks/gpu.py`, a module each, and what runs them and writes down what they found."""
