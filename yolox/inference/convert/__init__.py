"""From a module of PyTorch to what a library runs: export, folding, calibration, quantizers."""
