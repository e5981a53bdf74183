"""Lessons on learning: losses, optimizers, initial weights, regularisation, searching."""
