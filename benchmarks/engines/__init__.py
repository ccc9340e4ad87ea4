"""YOLOX in the inference engines that people use: one table of latency, memory, size and accuracy."""
