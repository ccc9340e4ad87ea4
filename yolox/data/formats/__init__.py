"""Readers of the forms in which labels come, and the checks that all of them pass."""
