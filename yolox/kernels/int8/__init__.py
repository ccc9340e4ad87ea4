"""Networks of 8-bit convolutions in compiled kernels of our own: description, conversion, and execution."""
