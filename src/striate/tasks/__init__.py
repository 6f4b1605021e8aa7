"""Whole applied systems, each a package with its data format, model, training, evaluation and command."""
