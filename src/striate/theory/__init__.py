"""Closed forms and the small worlds that test them: a theory's curve and the measured curve in one figure.

One subject a module. Sample complexity, for any architecture: ``learners`` (anything that can be trained: a network of
yours, the two-step rule, projected gradient descent, ridge regression), ``sample_complexity`` (how many samples it
needs), ``scaling`` (how that grows), ``local_signal`` (what theory says), ``equivariance``, ``fano``, ``figure``.
"""
