"""Plans beside fewer steps of other samplers at as many forwards: which comes nearer to the converged film."""

from collections.abc import Iterator

from torch import Tensor

from latte_fast.calibration.fits import psnr
from latte_fast.calibration.search import Found
from latte_fast.runs.plan import Plan
from latte_fast.sampling.planned import plain_plan
from latte_fast.sampling.request import Request
from latte_fast.sampling.source import ModelSource

OTHERS = ("dpm++", "unipc")
CONVERGED = 200  # steps of unipc, whose error falls with the third power of their number
FILMS = 4  # films that are compared


def beside_fewer_steps(source: ModelSource, request: Request, found: dict[str, Found]) -> Iterator[str]:
    """Yields a line for each plan: its PSNR to converged films of the same noise, and that of other samplers.

    The films are of samples that no plan was searched on. Exact films are themselves some way off the converged ones.
    """
    numbers = range(request.count, request.count + FILMS)
    condition = source.condition_for(numbers, request.seed)
    noise = source.noise(numbers, source.shape, request.seed)
    null = condition.null if request.scale != 1.0 else {}

    def film(plan: Plan) -> Tensor:
        denoiser = source.denoiser(source.model, condition.given, null, request.scale)
        return source.vae.decode(source.follow(plan, denoiser, noise))

    def plain(method: str, steps: int) -> Plan:
        return plain_plan(source.whole, method, steps, request.scale, source.adapter.step_keywords(steps))

    converged = film(plain("unipc", min(CONVERGED, source.whole.num_timesteps)))
    for name, at in found.items():
        own, steps = psnr(film(at.plan), converged), at.plan.computed
        others = {method: psnr(film(plain(method, steps)), converged) for method in OTHERS}
        best = max(others, key=others.__getitem__)
        ahead = f"{best} with {steps} steps is nearer" if others[best] > own else "the plan is nearer"
        figures = ", ".join(f"{method} {value:.1f} dB" for method, value in others.items())
        yield f"{name}: to the converged films {own:.1f} dB; {steps} steps of {figures}: {ahead}"
