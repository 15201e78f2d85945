"""Minimise by L-BFGS on a device, every decision taken there, so that the host need not wait at each iteration.

Shape legend: P parameters, M steps that are remembered.
"""

from collections.abc import Callable

import torch

Objective = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Returns the value and the gradient `(P,)` at a point `(P,)`, both float64."""

MEMORY = 10
LOOKED = 20
"""Iterations after which the host asks whether the minimum is reached."""
SUFFICIENT = 1e-4
"""Armijo's constant: the share of the decrease that the slope promises."""
ROUNDING = 1e-7
"""Relative error of a value computed in float32; smaller increases are none."""
STALLED = 1e-10
PATIENCE = 5
"""A relative decrease, below which so many times in a row the value has arrived: it is rounded to float32."""


class _State:
    """Holds a point, the direction and the step to be tried from it, and the last M steps with their gradients."""

    def __init__(self, objective: Objective, start_P: torch.Tensor, tolerance: float):
        self.objective = objective
        self.tolerance = tolerance
        self.point_P = start_P
        self.value, self.gradient_P = objective(start_P)
        self.direction_P = -self.gradient_P

        # At first of length 1 at most
        self.step = 1 / self.gradient_P.norm().clamp(min=1)
        self.steps_MP = start_P.new_zeros(MEMORY, len(start_P))
        self.changes_MP = torch.zeros_like(self.steps_MP)
        self.is_reached = self.gradient_P.abs().max() <= tolerance
        self.stalled = torch.zeros_like(self.value)

    def advance(self) -> None:
        """Try a step: take it and choose a new direction, or halve it; once the minimum is reached do neither."""
        tried_P = self.point_P + self.step * self.direction_P
        value, gradient_P = self.objective(tried_P)

        # Does it go down far enough? (Nocedal & Wright, Numerical Optimization, equation 3.4)
        slope = self.gradient_P.dot(self.direction_P)
        slack = ROUNDING * self.value.abs()
        is_taken = value <= self.value + SUFFICIENT * self.step * slope + slack
        is_taken = is_taken & ~self.is_reached
        decrease = self.value - value
        is_still = decrease <= STALLED * self.value.abs().clamp(min=1)
        self.stalled = torch.where(is_taken, (self.stalled + 1) * is_still, self.stalled)

        # Remember the step
        step_P = tried_P - self.point_P
        change_P = gradient_P - self.gradient_P
        is_kept = is_taken & (step_P.dot(change_P) > 0)
        self.steps_MP = _pushed(self.steps_MP, step_P, is_kept)
        self.changes_MP = _pushed(self.changes_MP, change_P, is_kept)

        # Take it
        self.point_P = torch.where(is_taken, tried_P, self.point_P)
        self.value = torch.where(is_taken, value, self.value)
        self.gradient_P = torch.where(is_taken, gradient_P, self.gradient_P)
        self.step = torch.where(is_taken, 1.0, self.step / 2)
        self.direction_P = -self._times_inverse_hessian(self.gradient_P)

        is_flat = self.gradient_P.abs().max() <= self.tolerance
        self.is_reached = self.is_reached | is_flat | (self.stalled >= PATIENCE)

    def _times_inverse_hessian(self, q_P: torch.Tensor) -> torch.Tensor:
        """Return H·q by the two loops over the remembered steps (ibid., algorithm 7.4)."""
        products_M = (self.steps_MP * self.changes_MP).sum(dim=1)
        inverse_M = torch.where(products_M > 0, 1 / products_M, 0.0)  # 0: a place that is empty yet

        shares = []
        for place in reversed(range(MEMORY)):
            share = inverse_M[place] * self.steps_MP[place].dot(q_P)
            q_P = q_P - share * self.changes_MP[place]
            shares.append(share)

        length = self.changes_MP[-1].square().sum()
        r_P = torch.where(products_M[-1] > 0, products_M[-1] / length, 1.0) * q_P
        for place in range(MEMORY):
            back = inverse_M[place] * self.changes_MP[place].dot(r_P)
            r_P = r_P + (shares.pop() - back) * self.steps_MP[place]

        return r_P


def _pushed(rows_MP: torch.Tensor, row_P: torch.Tensor, is_kept: torch.Tensor) -> torch.Tensor:
    """Return the rows without the oldest and with a new one behind the others, where it is to be kept."""
    return torch.where(is_kept, torch.cat([rows_MP[1:], row_P[None]]), rows_MP)


def minimise_on_device(
    objective: Objective, start_P: torch.Tensor, iterations: int, tolerance: float
) -> tuple[torch.Tensor, bool]:
    """Return the minimum of a convex function, and True if it was reached.

    It is where no component of the gradient is above `tolerance`, or where the value falls no further.

    Args:
        start_P: float64.
        iterations: the most of them, each with one evaluation.

    >>> middle_P = torch.tensor([1.0, -2.0], dtype=torch.float64)
    >>> def objective(point_P):
    ...     return (point_P - middle_P).square().sum(), 2 * (point_P - middle_P)
    >>> found_P, is_reached = minimise_on_device(objective, torch.zeros_like(middle_P), 100, 1e-6)
    >>> [round(value, 3) for value in found_P.tolist()], is_reached
    ([1.0, -2.0], True)
    """
    state = _State(objective, start_P, tolerance)
    for number in range(iterations):
        if number % LOOKED == 0 and bool(state.is_reached):
            break
        state.advance()

    return state.point_P, bool(state.is_reached)
