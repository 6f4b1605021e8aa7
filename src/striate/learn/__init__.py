"""Ways to train: what is shown to the network, and what it is asked for."""
