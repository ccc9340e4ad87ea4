"""One file for each library that can quantize a model."""
