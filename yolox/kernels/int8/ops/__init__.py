"""The operators of the int8 engine, one family a file: how it is read, computed in float, quantized, built and run."""
