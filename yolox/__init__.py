"""YOLOX on ordinary CPUs: train it fast, deploy it at the lowest latency that keeps its accuracy."""

__version__ = "0.1.0"
