"""Predictions over HTTP: a small service with batches, limits, a health and a metrics page."""
