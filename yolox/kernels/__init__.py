"""Compiled kernels: their C++ sources, their build and loader, and what calls them; nothing here knows a network."""
