"""Papers: what each one claims, and the reproduction that tests it. No method code lives here."""
