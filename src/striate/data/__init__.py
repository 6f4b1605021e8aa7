"""Readers for a person's images, embedded real sets, and seeded generators with exact ground truth."""
