"""The proximal optimized gradient method: FISTA's cost per iteration at half its worst-case bound."""

from collections.abc import Callable

import torch

Tensor = torch.Tensor


def pogm(
    gradient: Callable[[Tensor], Tensor],
    prox: Callable[[Tensor, float], Tensor],
    start: Tensor,
    step: float,
    iterations: int,
) -> Tensor:
    """min over x of f(x) + g(x), f smooth and convex, g convex (Taylor, Hendrickx & Glineur 2017, POGM).

    Symbols as in Lin & Fessler 2019, section II-C: w gradient step, z extrapolation, θ momentum, γ step of z.

    Parameters
    ----------
    gradient
        ∇f.
    prox
        `prox(v, γ)` = argmin over x of g(x) + ‖x − v‖² / (2γ).
    step
        at most 1 / L, L the Lipschitz constant of ∇f.
    iterations
        N, known in advance because the last θ differs.

    Returns
    -------
    x after N iterations, shape of `start`.
    """
    x = w = z = start
    theta, gamma = 1.0, step
    for k in range(1, iterations + 1):
        theta_next = (1 + (1 + (8 if k == iterations else 4) * theta**2) ** 0.5) / 2
        w_next = x - step * gradient(x)
        z = (
            w_next
            + (theta - 1) / theta_next * (w_next - w)
            + theta / theta_next * (w_next - x)
            + step / gamma * (theta - 1) / theta_next * (z - x)
        )
        gamma = step * (2 * theta + theta_next - 1) / theta_next
        w, theta = w_next, theta_next
        x = prox(z, gamma)
    return x
