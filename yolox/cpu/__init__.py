"""Facts and settings of this host: cores, memory allocator, instruction sets."""
