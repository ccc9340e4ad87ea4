"""What YOLOX does to learn: LightningModule, optimizer groups, schedule, EMA, phases."""
