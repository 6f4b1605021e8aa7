"""Whole networks, one file a family.

Importing :mod:`striate.models.zoo` registers those of published papers with timm, so that ``timm.create_model`` finds
them; :func:`striate.load_model` does so by itself.
"""
