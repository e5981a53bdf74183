"""Lessons on networks: convolution, depth, memory, codes, generation, transfer."""
