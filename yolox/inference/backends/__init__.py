"""One file for each library that can run a model."""
