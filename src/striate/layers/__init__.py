"""Drop-in modules and functions on tensors. They know nothing of papers, data or runs."""
