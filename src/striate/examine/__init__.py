"""Examining a person's network: probes, what each of them found, and the report that holds it all."""
