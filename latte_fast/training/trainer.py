"""The training loop: one process or many, the same losses; stopped and resumed, the same losses."""

import math
import signal
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latte_fast.data import GlobalSampler
from latte_fast.diffusion import create_diffusion
from latte_fast.training import build, checkpoint
from latte_fast.training.config import TrainConfig
from latte_fast.training.draw import Batch, Drawn, Numbered, read
from latte_fast.training.ema import Ema
from latte_fast.training.log import RunLog, peak_memory
from latte_fast.training.parallel import Ranks, reducing, spread
from latte_fast.training.preview import preview
from latte_fast.training.rate import rate
from latte_fast.training.weights import Weights, clip, gradients, norm_of
from latte_fast.training.yaml import write_config

TERMS = ("loss", "mse", "vb")


class Trainer:
    """A run from its configuration; building one checks everything and writes nothing.

    Args:
        config: of the run.
        ranks: of this process.
        resume: whether the run's folder may exist, and is gone on with.
        say: where notes go.
    """

    def __init__(
        self,
        config: TrainConfig,
        ranks: Ranks | None = None,
        resume: bool = False,
        say: Callable[[str], None] = print,
    ):
        self.config, self.ranks = config, ranks or Ranks()
        self.out = Path(config.out)
        self.say = say if self.ranks.first else lambda text: None
        self.ranks.from_first(lambda: build.check_run(config, self.ranks, resume))
        self.vae = build.open_run_vae(config, self.ranks.device)
        self.task = build.open_task(config, self.vae)
        self.share = config.batch // self.ranks.count
        self.micro = config.micro_batch or self.share
        several = self.ranks.count > 1
        self.how = ("ddp" if config.parallel == "auto" else config.parallel) if several else "none"
        if config.parallel in ("ddp", "fsdp") and not several:
            self.say(f"train: one process, so there is nothing for {config.parallel} to spread")
        self.diffusion = create_diffusion(
            "",
            config.diffusion.schedule,
            learn_sigma=config.model.learn_sigma,
            diffusion_steps=config.diffusion.steps,
            prediction=config.diffusion.prediction,
            min_snr=config.diffusion.min_snr,
        )
        self._build_model()
        self.step = 0  # updates done
        self.sums = torch.zeros(len(TERMS), dtype=torch.float64, device=self.ranks.device)
        self.summed = 0  # updates in the sums
        self.stopping = False
        if resume:
            self._resume()

    def _build_model(self) -> None:
        config = self.config
        model, self.dropout = build.new_model(config, self.task, self.say)
        model.to(self.ranks.device)
        if config.fp8:
            build.convert_to_fp8(model)
        if config.compile:
            build.compile_blocks(model)
        self.model = model.train()
        sharded = self.how == "fsdp"
        if sharded:
            self.call = spread(model, self.how, self.ranks, config.precision)
        self.weights = Weights(model, master=config.precision == "bf16-weights" and not sharded)
        if not sharded:
            self.call = spread(model, self.how, self.ranks)
        optim = config.optim
        self.optimizer = torch.optim.AdamW(
            list(self.weights.trained.values()),
            lr=optim.lr,
            betas=optim.betas,
            eps=optim.eps,
            weight_decay=optim.weight_decay,
            fused=True,
        )
        self.ema = Ema(self.weights.by_name, optim.ema, optim.ema_warmup)

    def state(self) -> dict[str, Any]:
        """Every tensor that a run goes on from; loaded in place."""
        moments = checkpoint.optimizer_state(self.optimizer, self.weights.trained)
        return {"model": self.weights.by_name, "ema": self.ema.average, "optimizer": moments}

    def save(self) -> Path:
        if self.ranks.any(not self.weights.finite()):
            # a checkpoint without use would take the place of a good one
            raise FloatingPointError(f"train: weights must be finite to be saved, got others at step {self.step}")
        # of the steps since the last line of the log, so that the next line is the same after a resume
        sums = self.ranks.sum(self.sums).tolist()
        meta = {
            "step": self.step,
            "samples": self.step * self.config.batch,
            "seed": self.config.seed,
            "processes": self.ranks.count,
            "sums": sums,
            "summed": self.summed,
            "model": asdict(self.task.family.config),
            "classes": self.task.family.classes,
        }
        weights: dict[str, dict[str, Tensor]] = {"model": self.weights.by_name, "ema": self.ema.average}
        return checkpoint.save(self.out, self.step, self.state(), weights, meta, self.ranks, self.config.keep)

    def _resume(self) -> None:
        folder = self.ranks.from_first(lambda: checkpoint.latest(self.out, self.say))
        if folder is None:
            self.say(f"train: no whole checkpoint in {self.out}, starting from the beginning")
            return
        checkpoint.load(folder, self.state(), self.ranks)
        self.weights.give()
        meta = checkpoint.read_meta(folder)
        self.step, self.summed = meta["step"], meta["summed"]
        if self.ranks.first:
            # a sum over ranks of each one's mean: as many as there are now
            share = self.ranks.count / meta["processes"]
            self.sums.copy_(torch.tensor(meta["sums"], dtype=torch.float64) * share)
        self.say(f"train: resumed {folder} at step {self.step}")
        if self.step >= self.config.steps:
            self.say(f"train: nothing is left to do of {self.config.steps} steps; a larger --steps goes on")

    def batches(self) -> Generator[Batch, None, None]:
        """This rank's micro-batches from the first sample not yet trained on to the run's last."""
        config, ranks = self.config, self.ranks
        start, end = self.step * config.batch, config.steps * config.batch
        pairs = GlobalSampler(
            len(self.task.dataset), config.batch, config.seed, rank=ranks.rank, ranks=ranks.count, start=start
        )
        numbered = Numbered(pairs, config.batch, ranks.rank, ranks.count, start, end)
        workers = build.readers(config.workers, ranks.device)
        return read(Drawn(self.task, config, self.dropout), numbered, self.micro, workers, ranks.device)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Sums of each term over a micro-batch, over this rank's share of the batch."""
        x = batch["latent"] if "latent" in batch else batch["video"]
        if self.task.encoded:
            assert self.vae is not None
            mean, std = self.vae.encode(x)
            x = mean + std * batch["eps"]
        conditions = self.task.family.conditions(batch, self.config.images)
        terms = self.diffusion.training_losses(self.forward, x, batch["t"], conditions, batch["noise"])
        return {name: value.sum() / self.share for name, value in terms.items()}

    def forward(self, x: Tensor, t: Tensor, **kwargs: Any) -> Tensor:
        return self._run(self.call, x, t, **kwargs)

    def sample(self, x: Tensor, t: Tensor, **kwargs: Any) -> Tensor:
        """The model outside DDP, whose ranks would wait for each other."""
        return self._run(self.model, x, t, **kwargs)

    def _run(self, model: nn.Module, x: Tensor, t: Tensor, **kwargs: Any) -> Tensor:
        half = self.config.precision == "bf16"
        with torch.autocast(x.device.type, torch.bfloat16, enabled=half):
            x = x.to(torch.bfloat16) if self.weights.master else x
            return self.task.family.call(model, x, t, **kwargs).float()

    def update(self, batches: Iterator[Batch]) -> float:
        """One update; returns the seconds spent waiting for data."""
        optim, waited = self.config.optim, 0.0
        count = self.share // self.micro
        for i in range(count):
            begin = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - begin
            with reducing(self.call, last=i == count - 1):
                terms = self.loss(batch)
                terms["loss"].backward()
            self.weights.take_gradients()
            for j, name in enumerate(TERMS):
                if name in terms:
                    self.sums[j] += terms[name].detach()
        self.summed += 1
        grads = gradients(self.weights.trained.values())
        if optim.clip is not None or self.logs_at(self.step + 1):
            self.norm = norm_of(grads, self.ranks, self.how == "fsdp")
        if optim.clip is not None:
            clip(grads, self.norm, optim.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = rate(optim, self.step, self.config.steps)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.weights.give()
        self.ema.update(self.step)
        self.step += 1
        return waited

    def logs_at(self, step: int) -> bool:
        return step % self.config.log_every == 0 or step == self.config.steps

    def run(self) -> int:
        """Trains to the last step, or to SIGTERM or Ctrl-C, with a checkpoint at the end; returns the updates done."""
        config, ranks = self.config, self.ranks
        if ranks.first:
            self.out.mkdir(parents=True, exist_ok=True)
            write_config(self.out / build.CONFIG, config)
        log = RunLog(self.out, self.step, config.steps, ranks.first, config.tensorboard)
        batches = self.batches()
        since, waited, saved, counted = time.perf_counter(), 0.0, self.step, 0
        try:
            with self._signals():
                while self.step < config.steps:
                    waited += self.update(batches)
                    counted += 1
                    log.step()
                    if self.logs_at(self.step):
                        log.write(self.line(counted, since, waited))
                        since, waited, counted = time.perf_counter(), 0.0, 0
                    stop = ranks.any(self.stopping)
                    if self.step % config.save_every == 0 or self.step == config.steps or stop:
                        self.save()
                        saved = self.step
                    if config.sample.every and self.step % config.sample.every == 0:
                        preview(self)
                    if stop:
                        break
        finally:
            batches.close()
            log.close()
        if self.step < config.steps:
            self.say(f"train: stopped at step {self.step} with a checkpoint; --resume goes on")
        assert saved == self.step
        return self.step

    def line(self, counted: int, since: float, waited: float) -> dict[str, Any]:
        """A line of the log: means since the last one; the only place where a step waits for the GPU."""
        means = (self.ranks.sum(self.sums) / (self.summed * self.ranks.count)).tolist()
        norm = self.norm.item()
        # once the GPU has done the steps: the host hands them over faster than they are computed
        seconds = max(time.perf_counter() - since, 1e-9)
        self.sums.zero_()
        self.summed = 0
        if not math.isfinite(means[0]):
            raise FloatingPointError(f"train: loss must be finite, got {means[0]} at step {self.step}")
        named = dict(zip(TERMS, means, strict=True))
        if not self.config.model.learn_sigma:
            named = {"loss": named["loss"]}
        return {
            "step": self.step,
            **named,
            "grad_norm": norm,
            "lr": self.optimizer.param_groups[0]["lr"],
            "clips_per_s": counted * self.config.batch / seconds,
            "data_wait": waited / seconds,
            "peak_bytes": peak_memory(self.ranks.device),
        }

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGTERM and Ctrl-C end the run after the step at hand; a second Ctrl-C ends it at once."""

        def stop(number: int, frame: Any) -> None:
            if self.stopping and number == signal.SIGINT:
                raise KeyboardInterrupt
            self.stopping = True

        try:
            before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        except ValueError:  # not in the main thread: whoever runs it stops it
            yield
            return
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
