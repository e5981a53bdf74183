"""Populations: runs of one static configuration that train side by side as one program.

A *lane* is one of the runs. All of them take the same steps; a number that tells two lanes apart
(learning rate, dropout rate, seed, ...) is an input of the program.
"""
