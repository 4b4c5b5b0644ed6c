"""Plans: what a sampling run computes and what it reuses, a row a step, fixed before the run; kept as JSON."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from latte_fast.diffusion.solvers import Row, Sum
from latte_fast.modules.linear8 import Linear8
from latte_fast.modules.precision import SIXTEEN

FORMAT = 3
PLANS = "plans"  # folder in a run
COMPUTED = ("exact", "lossless")  # qualities that compute every step, without a plan's file
PRECISIONS = (SIXTEEN, "fp8", "int8")
SUMS = ("correct", "predict", "fitted_correct", "fitted_predict")
# what rows of older formats did not say
FITTED = {"fitted_correct": None, "fitted_predict": None, "repeat": False}
NEWER = {1: {"precision": SIXTEEN, "weights": [], **FITTED}, 2: FITTED}


@dataclass(frozen=True)
class PlanRow:
    """One step: the solver's numbers, and how its prediction is made."""

    time: float  # time step that the model is given
    correct: Sum | None
    predict: Sum
    compute: bool = True  # False adds an extrapolation of earlier steps instead of running the blocks
    order: int = 0  # of that extrapolation: how many sums it takes beside the newest
    weights: tuple[float, ...] = ()  # fitted to samples, of the sums; without them Lagrange's
    guidance: Literal["both", "kept", "off"] = "both"  # "kept": the difference of the branches of an earlier step
    side: int | None = None  # tokens along an edge, for models whose density varies
    precision: str = SIXTEEN  # of the blocks' linear layers, one of PRECISIONS
    fitted_correct: Sum | None = None  # fitted to samples, in the place of `correct`
    fitted_predict: Sum | None = None  # fitted to samples, in the place of `predict`
    repeat: bool = False  # takes the newest prediction again, without a call of the model


@dataclass(frozen=True)
class Plan:
    """A sampler's steps in order, with what the plan was made for and what it was measured to lose."""

    method: str
    steps: int
    scale: float
    rows: tuple[PlanRow, ...]
    made_for: dict[str, Any] = field(default_factory=dict)
    measured: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.rows) < 2:
            raise ValueError(f"plan: rows must be two or more, got {len(self.rows)}")
        for where, row in (("first", self.rows[0]), ("last", self.rows[-1])):
            if not row.compute:
                raise ValueError(f"plan: the {where} step must be computed, got one that is reused")
        halves: list[bool] = []  # of the computed steps: whether the unguided half was run
        for i, row in enumerate(self.rows):
            if row.guidance not in ("both", "kept", "off"):
                raise ValueError(f"plan: guidance of step {i} must be both, kept or off, got {row.guidance!r}")
            if row.precision not in PRECISIONS:
                known = ", ".join(PRECISIONS)
                raise ValueError(f"plan: precision of step {i} must be one of {known}, got {row.precision!r}")
            if not row.compute and not 0 <= row.order < len(halves):
                rule = f"below the {len(halves)} steps computed before it"
                raise ValueError(f"plan: order of step {i} must be {rule}, got {row.order}")
            if row.weights and (row.compute or len(row.weights) != row.order + 1):
                rule = f"none for a computed step, else order + 1 = {row.order + 1}"
                raise ValueError(f"plan: weights of step {i} must be {rule}, got {len(row.weights)}")
            if not row.compute and row.guidance == "both" and not all(halves[-1 - row.order :]):
                rule = "kept, as a step that is reused was computed without its unguided half"
                raise ValueError(f"plan: guidance of step {i} must be {rule}, got both")
            if row.repeat and (row.compute or row.weights):
                raise ValueError(f"plan: step {i} must not repeat a prediction that it computes")
            if row.guidance == "kept" and not any(halves):
                raise ValueError(f"plan: step {i} must not keep a guidance that no earlier step computed")
            if row.compute:
                halves.append(row.guidance == "both")

    @property
    def computed(self) -> int:
        """Number of steps whose blocks are run."""
        return sum(row.compute for row in self.rows)

    @property
    def forwards(self) -> float:
        """Number of forwards of the whole batch, one without its second half counted as a half."""
        return sum((1.0 if row.guidance == "both" else 0.5) * row.compute for row in self.rows)

    def summary(self) -> str:
        """Returns what a run of the plan computes and reuses, in a line."""
        reused = len(self.rows) - self.computed
        said = f"{self.computed} of {len(self.rows)} steps computed, {reused} reused"
        if self.precisions == [SIXTEEN]:
            return said
        counts = {name: sum(row.compute and row.precision == name for row in self.rows) for name in self.precisions}
        return said + "".join(f", {count} in {in_words(name)}" for name, count in counts.items())

    @property
    def precisions(self) -> list[str]:
        """Precisions of the steps whose blocks are run, in the order in which they appear."""
        return list(dict.fromkeys(row.precision for row in self.rows if row.compute))

    def in_precision(self, precision: str, precise: Sequence[str] = ()) -> "Plan":
        """Returns the plan with all steps in a precision but for those that `precise` names, which run in 16 bits."""
        steps = named_steps(precise, len(self.rows))
        given = (SIXTEEN if i in steps else precision for i in range(len(self.rows)))
        rows = (replace(row, precision=new) for row, new in zip(self.rows, given, strict=True))
        return replace(self, rows=tuple(rows))

    def solver_rows(self) -> list[Row]:
        return [
            Row(i, row.fitted_correct or row.correct, row.fitted_predict or row.predict)
            for i, row in enumerate(self.rows)
        ]

    @property
    def fitted_sums(self) -> bool:
        """Whether a step's sums are not the sampler's own."""
        return any(row.fitted_correct or row.fitted_predict for row in self.rows)

    def save(self, path: str | Path) -> None:
        """Writes the plan with a checksum, so that an edit by hand is noticed."""
        body = asdict(self)
        text = json.dumps({"format": FORMAT, "sha256": digest(body), **body}, indent=1)
        Path(path).write_text(text + "\n")

    def table(self) -> str:
        """Returns the rows as text, a line a step."""
        of = f"{self.computed} of {len(self.rows)} computed"
        lines = [f"{self.method}, {self.steps} steps, guidance {self.scale:g}: {of}"]
        lines += [f"  {name} {value:g}" for name, value in self.measured.items()]
        mixed = self.precisions != [SIXTEEN]
        lines.append("step   time  blocks                    guidance" + "  precision" * mixed)
        for i, row in enumerate(self.rows):
            fitted = ", fitted" if row.weights else ""
            what = "computed" if row.compute else f"reused, order {row.order}{fitted}"
            what = "prediction taken again" if row.repeat else what
            guidance = row.guidance if self.scale != 1 else "off"
            line = f"{i:4}  {row.time:5g}  {what:24}  {guidance}"
            lines.append(f"{line:49}{in_words(row.precision) if row.compute else '-'}" if mixed else line)
        return "\n".join(lines)

    def __str__(self) -> str:
        return f"{self.method} {''.join(mark(row) for row in self.rows)}"


def mark(row: PlanRow) -> str:
    """Returns a letter: C computed, f reused with fitted weights, - repeated, else the order of the reuse."""
    return "C" if row.compute else "-" if row.repeat else "f" if row.weights else str(row.order)


def load_plan(path: str | Path) -> Plan:
    """Reads a plan; refuses one of another format or with an edited row."""
    path = Path(path)
    try:
        body = json.loads(path.read_text())
        version, signed = body.pop("format"), body.pop("sha256")
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"plan: path must be a plan that calibrate wrote, got {path}: {error}") from error
    if version not in (*NEWER, FORMAT):
        raise ValueError(f"plan: format must be 1 to {FORMAT}, got {version} in {path}; calibrate again")
    if digest(body) != signed:
        raise ValueError(f"plan: {path} was changed after it was written; calibrate again")
    known = {f.name for f in fields(PlanRow)}
    rows = []
    for stored in body["rows"]:
        row = NEWER[version] | stored if version in NEWER else stored
        if set(row) != known:
            raise ValueError(f"plan: rows of {path} must have {', '.join(sorted(known))}, got {', '.join(sorted(row))}")
        sums = {name: as_sum(row[name]) for name in SUMS}
        weights = tuple(float(weight) for weight in row["weights"])
        rows.append(PlanRow(**{**row, **sums, "weights": weights}))
    return Plan(**{**body, "rows": tuple(rows)})


def as_sum(stored: Sequence[Any] | None) -> Sum | None:
    if stored is None:
        return None
    keep, weights = stored
    return Sum(float(keep), tuple(float(w) for w in weights))


def digest(body: dict[str, Any]) -> str:
    """Returns a checksum of a plan's content; floats are written so that they are read back as they were."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def weights_digest(model: nn.Module) -> str:
    """Returns a checksum of a model's weights, the same in fp32 and rounded to bf16, on any device."""
    total = hashlib.sha256()
    # parameters alone: buffers are tables, which not every library keeps. Those of 16 bits beside layers of 8 count
    weights: dict[str, Tensor] = dict(model.named_parameters())
    for name, layer in model.named_modules():
        if type(layer) is Linear8 and layer.before is not None:
            weights[f"{name}.weight"] = layer.before.weight
    for name, value in sorted(weights.items()):
        total.update(f"{name} {tuple(value.shape)}".encode())
        total.update(value.detach().bfloat16().cpu().contiguous().view(torch.int16).numpy().tobytes())
    return total.hexdigest()


def in_words(precision: str) -> str:
    return "16 bits" if precision == SIXTEEN else precision


def named_steps(names: Sequence[str], count: int) -> set[int]:
    """Returns the steps that names stand for: first, last, a number, or a range such as 0-4."""
    steps: set[int] = set()
    for name in (part for given in names for part in given.split(",")):
        ends = {"first": "0", "last": f"{count - 1}"}.get(name, name).split("-")
        numbers = [int(end) for end in ends if end.isdecimal()]
        if len(numbers) != len(ends) or len(ends) > 2 or not numbers[0] <= numbers[-1] < count:
            rule = f"first, last, numbers below {count} or ranges such as 0-4"
            raise ValueError(f"plan: precise steps must be {rule}, got {name!r:.40}")
        steps |= set(range(numbers[0], numbers[-1] + 1))
    return steps


def check_precision(plan: Plan, known: Sequence[str]) -> None:
    """Raises ValueError, which names the step, where a plan asks for a precision that a model does not have."""
    for i, row in enumerate(plan.rows):
        if not row.compute or row.precision in known:
            continue
        if row.precision == SIXTEEN:
            rule = f"{known[0]}, as the model's 16-bit weights were not kept"
            hint = "--precise-steps keeps them and says which steps they are for"
        else:
            rule = " or ".join(known) + ", which is what the model has"
            hint = f"--precision {row.precision} gives it 8 bits"
        raise ValueError(f"plan: precision of step {i} must be {rule}, got {row.precision}; {hint}")


def check_made_for(plan: Plan, plain: Plan) -> None:
    """Raises ValueError, which names the difference, unless the plan is one for the same steps of the same model."""
    for name, value in plain.made_for.items():
        got = plan.made_for.get(name)
        if got != value and name == "weights":
            raise ValueError("plan: weights must be those that the plan was made for, got others; calibrate again")
        if got != value:
            raise ValueError(f"plan: {name} must be {got!r}, for which the plan was made, got {value!r}")
    for name, flag in (("method", "method"), ("steps", "steps"), ("scale", "guidance")):
        made, asked = getattr(plan, name), getattr(plain, name)
        if made != asked:
            raise ValueError(f"plan: {flag} must be {made!r}, for which the plan was made, got {asked!r}")
    for i, (own, row) in enumerate(zip(plan.rows, plain.rows, strict=False)):
        same = (own.time, own.correct, own.predict, own.side) == (row.time, row.correct, row.predict, row.side)
        if len(plan.rows) != len(plain.rows) or not same:
            raise ValueError(f"plan: step {i} must be the sampler's of this version, got another; calibrate again")


def plan_path(run: str | Path, quality: str) -> str:
    """Returns the file of a run's plan for a quality; empty for one of COMPUTED, which needs none."""
    if quality in COMPUTED:
        return ""
    path = Path(run) / PLANS / f"{quality}.json"
    if not path.is_file():
        known = sorted(p.stem for p in path.parent.glob("*.json"))
        names = ", ".join([*COMPUTED, *known])
        rule = f"one of {names}; `latte-fast calibrate {run}` makes plans"
        raise ValueError(f"sample: quality must be {rule}, got {quality!r}")
    return str(path)
