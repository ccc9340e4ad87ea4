"""How a CPU machine runs any nn.Module fast: methods, measurement, artifacts."""
