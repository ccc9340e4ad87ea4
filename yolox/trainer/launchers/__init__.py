"""Processes that run one function once per slot."""
