"""Forward and central differences."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.lessons.charts import panels, style
from experiments.lessons.lesson import Lab, Lesson
from experiments.viz.figures import LEGEND

AT = 1.0
STEPS = 10.0 ** np.arange(0, -16.25, -0.25)


@dataclass(frozen=True, kw_only=True)
class NumericalDerivatives(Lesson):
    """A central difference is exact to second order, and rounding ends the gain of small steps.

    The error of (f(x + h) − f(x)) / h falls with h, that of (f(x + h) − f(x − h)) / 2h with h².
    Below some step the rounding of f, divided by h, is larger: in 64 bits near the square root and
    the cube root of the machine's precision, in 32 bits far earlier. This is why a gradient is
    checked with central differences, and in 64 bits.

    References:
      Press et al. 2007, "Numerical recipes", section 5.7.
    """

    def run(self, lab: Lab) -> None:
        figure, axes = panels(["64 bits", "32 bits"])
        best, slopes = {}, {}
        for ax, kind in zip(axes, (np.float64, np.float32), strict=True):
            for index, (name, errors) in enumerate(_errors(kind).items()):
                shown = np.maximum(errors, 1e-17)
                ax.loglog(STEPS, shown, label=f"{name} difference", **style(index, marks=False))
                best[name, kind] = STEPS[np.argmin(errors)], errors.min()
                # where truncation rules: the first decade of steps
                first = slice(0, 5)
                slopes[name, kind] = np.polyfit(np.log(STEPS[first]), np.log(errors[first]), 1)[0]
            ax.set(xlabel="step h", ylabel="error of the derivative of sin at 1")
            ax.legend(**LEGEND)
        caption = (
            "To the right truncation, which falls with h or h²; to the left rounding, which grows."
        )
        lab.figure("errors", figure, caption)
        forward, central = (slopes[name, np.float64] for name in ("forward", "central"))
        lab.conclude(
            "the error of a forward difference falls with h, that of a central one with h²",
            bool(abs(forward - 1) < 0.2 and abs(central - 2) < 0.2),
            f"measured exponents {forward:.2f} and {central:.2f}",
        )
        (at_f, least_f), (at_c, least_c) = (best[n, np.float64] for n in ("forward", "central"))
        lab.conclude(
            "the best step is far from the smallest, and a central difference's is larger",
            bool(at_c > at_f > 1e-11 and least_c < least_f),
            f"forward: {least_f:.0e} at h = {at_f:.0e}; central: {least_c:.0e} at h = {at_c:.0e}",
        )
        at_single, single = best["central", np.float32]
        lab.conclude(
            "32 bits cost half of the digits and more",
            bool(single > 1e3 * least_c),
            f"central difference: {single:.0e} at h = {at_single:.0e}, in 64 bits {least_c:.0e}",
        )


def _errors(kind: type) -> dict[str, np.ndarray]:
    x: Any = kind(AT)
    steps: Any = STEPS.astype(kind)
    up, down = x + steps, x - steps
    exact = np.cos(AT)
    forward = (np.sin(up) - np.sin(x)) / steps
    central = (np.sin(up) - np.sin(down)) / (2 * steps)
    return {
        name: np.abs(found.astype(np.float64) - exact)
        for name, found in (("forward", forward), ("central", central))
    }
