"""Layers of the networks as compiled kernels that read and write memory as seldom as possible, for training."""
