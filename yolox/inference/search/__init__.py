"""The run over all methods: a process each, latency, tuning, accuracy, and the report."""
