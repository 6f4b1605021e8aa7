"""How densities are spread over layers in closed form: uniform, Erdős-Rényi-kernel, and the SynExp programme.

SynExp (Cai et al. 2022, "Structured Pruning of CNNs at Initialization", arXiv 2203.02549): the expectation of SynFlow's
score over random weights and masks is a product over layers of p_l, the share of weights that layer l keeps, whatever
the granularity. So the best shares under bounds on parameters and multiplications solve a convex programme,

    maximise sum_l log p_l   subject to   sum_l n_l p_l <= B_params,   sum_l f_l p_l <= B_macs,   0 < p_l <= p_max

with n_l weights and f_l multiply-accumulates in layer l. Its stationary points are p_l = min(p_max, 1 / (mu n_l +
nu f_l)) with mu, nu >= 0, each zero unless its bound is tight. The paper takes one bound at a time (and p_max = 1, or
larger where the network is re-configured); both at once are an addition here.

ERK: Evci et al. 2020, "Rigging the Lottery", arXiv 1911.11134, Appendix A: p_l in proportion to (C_in + C_out + kernel
height + kernel width) / (C_in C_out kernel height kernel width), at most 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from striate.errors import InputError

__all__ = ["fill", "synexp"]


def synexp(
    params: Sequence[float] | np.ndarray,
    macs: Sequence[float] | np.ndarray | None = None,
    *,
    params_budget: float | None = None,
    macs_budget: float | None = None,
    p_max: float = 1.0,
) -> np.ndarray:
    """Solve the programme above.

    Args:
        params: (L,) weights n_l of each layer.
        macs: (L,) multiply-accumulates f_l; needed for ``macs_budget``.
        params_budget, macs_budget: B, in the same units; one or both.
        p_max: largest density.

    Returns:
        (L,) densities p_l in (0, p_max]; the tight bound is met exactly, up to rounding in float64.

    Raises:
        InputError: no budget, or one that is not positive.

    >>> synexp([2304.0, 36864.0], params_budget=20_000.0).round(3)
    array([1.  , 0.48])
    """
    n = np.asarray(params, dtype=np.float64)
    f = None if macs is None else np.asarray(macs, dtype=np.float64)
    if params_budget is None and macs_budget is None:
        raise InputError("params_budget", "synexp", allowed="given, or macs_budget, or both", got="neither")
    for name, budget in (("params_budget", params_budget), ("macs_budget", macs_budget)):
        if budget is not None and not budget > 0:
            raise InputError(name, "synexp", allowed="> 0", got=budget)
    if macs_budget is not None and f is None:
        raise InputError("macs", "synexp", allowed="given where macs_budget is", got=None)
    if macs_budget is None:
        return fill(1 / n, n, params_budget, p_max)  # type: ignore[arg-type]
    assert f is not None
    by_macs = fill(1 / f, f, macs_budget, p_max)
    if params_budget is None or float(n @ by_macs) <= params_budget:
        return by_macs
    by_params = fill(1 / n, n, params_budget, p_max)
    if float(f @ by_params) <= macs_budget:
        return by_params
    return _both(n, f, params_budget, macs_budget, p_max)


def fill(rates: np.ndarray, costs: np.ndarray, budget: float, p_max: float = 1.0) -> np.ndarray:
    """Return p_l = min(p_max, c * rates_l) with the largest c for which sum costs_l p_l <= budget.

    Exact: layers reach p_max in the order of their rates, so c is known from how many have.
    """
    if float(costs.sum()) * p_max <= budget:
        return np.full(len(costs), p_max)
    order = np.argsort(-rates, kind="stable")
    full = 0.0
    open_cost = float((costs * rates).sum())
    for layer in order:
        c = (budget - full * p_max) / open_cost
        if c * rates[layer] <= p_max:
            return np.minimum(p_max, c * rates)
        full += float(costs[layer])
        open_cost -= float(costs[layer] * rates[layer])
    return np.full(len(costs), p_max)


def _both(n: np.ndarray, f: np.ndarray, params_budget: float, macs_budget: float, p_max: float) -> np.ndarray:
    """Both bounds are tight: bisect nu, and for each nu find the mu that meets the bound on parameters."""

    def densities(mu: float, nu: float) -> np.ndarray:
        with np.errstate(divide="ignore"):
            return np.minimum(p_max, 1 / (mu * n + nu * f))

    def at(nu: float) -> np.ndarray:
        if float(n @ densities(0.0, nu)) <= params_budget:
            return densities(0.0, nu)
        return densities(_root(lambda mu: params_budget - float(n @ densities(mu, nu)), len(n) / params_budget), nu)

    return at(_root(lambda nu: macs_budget - float(f @ at(nu)), len(f) / macs_budget))


def _root(increasing: Callable[[float], float], upper: float) -> float:
    """Return where an increasing function passes zero, in (0, upper]."""
    low, high = 0.0, upper
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (low, middle) if increasing(middle) >= 0 else (middle, high)
    return high
