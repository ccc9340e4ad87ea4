"""Datasets, augmentation, sampling and loaders."""
