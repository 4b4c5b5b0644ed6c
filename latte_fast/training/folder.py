"""A run's folder as the trainer takes it over: one writer, the newest checkpoint, and what is said to the user."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from latte_fast.distributed.ranks import Ranks
from latte_fast.locks import one_writer
from latte_fast.models.checkpoint import CheckpointError
from latte_fast.runs import checkpoint
from latte_fast.runs.config import TrainConfig
from latte_fast.runs.load import check_config

# share of the initial weights in the EMA above which its samples are noise
NOISE = 0.2


@contextmanager
def writing(out: Path, ranks: Ranks) -> Iterator[None]:
    """Holds the run's folder on rank 0; every rank raises where another process has it."""
    with ExitStack() as stack:
        ranks.from_first(lambda: stack.enter_context(one_writer(out, "train")))
        yield


def newest(out: Path, config: TrainConfig, say: Callable[[str], None]) -> Path | None:
    """Returns the checkpoint to resume, whose configuration must be the run's; removes what a stop left behind."""
    try:
        folder = checkpoint.latest(out, say)
    except CheckpointError as error:
        rule = "hold a whole checkpoint to be resumed"
        anew = "another --out begins a new run, or remove the folder"
        raise CheckpointError(f"train: out must {rule}, got {error}; {anew}") from None
    checkpoint.remove_partial(out)
    if folder is not None:
        check_config(out, config, folder, checkpoint.read_meta(folder))
    return folder


def beginning(config: TrainConfig, about: str, step: int) -> str:
    return f"train: {about}; steps {step} to {config.steps} of {config.batch} clips into {config.out}"


def ending(config: TrainConfig, step: int) -> str:
    """Says what there is now, and what to do next."""
    if step < config.steps:
        said = f"train: stopped at step {step} with a checkpoint; --resume goes on"
    elif config.objective == "vqgan":
        said = f"train: done, {step} steps; `latte-fast encode --tokens --vae {config.out}` makes tokens with it"
    else:
        vae = " --vae FOLDER" if config.data.kind in ("latents", "tokens") and config.vae == "identity" else ""
        said = f"train: done, {step} steps; `latte-fast sample {config.out}{vae}` draws from it"
    noise = ema_is_noise(config, step)
    return f"{said}; {noise}" if noise else said


def ema_is_noise(config: TrainConfig, step: int) -> str | None:
    """Says that the EMA of a short run still holds its initial weights, or returns None."""
    share = config.optim.initial_share(step)
    if share < NOISE or config.pretrained is not None:
        return None
    held = f"its EMA is still {share:.0%} initial noise after {step} steps"
    return f"{held}: `sample --weights model` draws from the weights themselves, --optim.ema-warmup suits short runs"
