"""How a CPU machine trains any LightningModule: plan, launchers, strategies, precision."""
