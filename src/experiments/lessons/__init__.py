"""The lab book: claims of the textbook, each measured by a short experiment.

A lesson is written in the Python that users have, `experiments.compose` and `experiments.train`.
"""
