"""The training loop: the same losses on one process or many, and after a stop and resume."""

import math
import signal
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latte_fast.data import GlobalSampler
from latte_fast.data.item import DataError
from latte_fast.data.verify import Verifier
from latte_fast.distributed.ranks import Ranks, alone
from latte_fast.evaluation.reconstructions import run_evaluation
from latte_fast.runs import checkpoint
from latte_fast.runs.config import CONFIG, TrainConfig
from latte_fast.runs.log import RunLog, peak_memory
from latte_fast.runs.yaml import write_config
from latte_fast.training.folder import beginning, ending, newest, writing
from latte_fast.training.loader import Batch, read
from latte_fast.training.lr_schedule import learning_rate
from latte_fast.training.objectives.denoising import Denoising
from latte_fast.training.objectives.objective import Objective
from latte_fast.training.objectives.tokens import TokensObjective
from latte_fast.training.objectives.vqgan import VQGANObjective
from latte_fast.training.setup import check_run, readers

OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "denoising": Denoising,
    "vqgan": VQGANObjective,
    "tokens": TokensObjective,
}


class Trainer:
    """Trains a run from its configuration; the constructor checks everything and writes nothing.

    Args:
        config: configuration of the run.
        ranks: processes of the run; by default this one alone, on the GPU where there is one.
        resume: whether to go on with the run in the folder, where there is one.
        say: function that prints a note.
    """

    def __init__(
        self,
        config: TrainConfig,
        ranks: Ranks | None = None,
        resume: bool = False,
        say: Callable[[str], None] = print,
    ):
        self.config = config
        self.ranks = replace(ranks or alone(), together=config.sequence)
        self.out = Path(config.out)
        self.say = say if self.ranks.first else lambda text: None
        self.ranks.from_first(lambda: check_run(config, self.ranks, resume))
        self.share = config.batch // self.ranks.teams  # clips of an update on this rank
        self.micro = config.micro_batch or self.share
        several = self.ranks.count > 1
        self.parallel = ("ddp" if config.parallel == "auto" else config.parallel) if several else "none"
        if config.parallel in ("ddp", "fsdp") and not several:
            self.say(f"train: one process, so there is nothing for {config.parallel} to spread")
        # before the data is opened: its configuration has to be the run's
        found = self.ranks.from_first(lambda: newest(self.out, config, self.say)) if resume else None
        self.objective = OBJECTIVES[config.objective](config, self.ranks, self.parallel, self.say)
        # sums of the losses since the last log line
        self.sums = torch.zeros(len(self.objective.columns), dtype=torch.float64, device=self.ranks.device)
        self.summed = 0
        self.norm: Tensor | None = None  # gradient norm of the first learner
        self.step = 0  # updates done
        self.stopping = False
        if resume:
            self._resume(found)
        self.evaluation = run_evaluation(config, self.objective, self.ranks, self.step)

    def save(self) -> Path:
        learners = self.objective.learners.values()
        if self.ranks.any(not all(learner.weights.finite() for learner in learners)):
            # a useless checkpoint would replace a good one
            raise FloatingPointError(f"train: weights must be finite to be saved, got others at step {self.step}")
        # saved so that the next log line is the same after a resume
        sums = dict(zip(self.objective.columns, self.ranks.sum(self.sums).tolist(), strict=True))
        meta = {
            "step": self.step,
            "samples": self.step * self.config.batch,
            "seed": self.config.seed,
            "processes": self.ranks.count,
            "sums": sums,
            "summed": self.summed,
            "config": asdict(self.config),
            **self.objective.meta(),
        }
        weights = self.objective.weights()
        kept = self.evaluation.kept if self.evaluation else ()
        state = self.objective.state()
        return checkpoint.save(self.out, self.step, state, weights, meta, self.ranks, self.config.keep, kept)

    def _resume(self, folder: Path | None) -> None:
        if folder is None:
            self.say(f"train: no checkpoint in {self.out} yet, starting from the beginning")
            return
        checkpoint.load(folder, self.objective.state(), self.ranks)
        self.objective.loaded()
        meta = checkpoint.read_meta(folder)
        self.step, self.summed = meta["step"], meta["summed"]
        if self.ranks.first:
            # the sums add one mean for each rank, and the number of ranks may have changed
            share = self.ranks.count / meta["processes"]
            sums = [meta["sums"][name] for name in self.objective.columns]
            self.sums.copy_(torch.tensor(sums, dtype=torch.float64) * share)
        self.say(f"train: resumed {folder} at step {self.step}")
        if self.step >= self.config.steps:
            self.say(f"train: nothing is left to do of {self.config.steps} steps; a larger --steps goes on")

    def batches(self) -> Generator[Batch, None, None]:
        """Returns this rank's micro-batches, from the first sample not yet trained on to the run's last."""
        config, ranks = self.config, self.ranks
        start, end = self.step * config.batch, config.steps * config.batch
        keys = GlobalSampler(
            self.objective.length, config.batch, config.seed, rank=ranks.team, ranks=ranks.teams, start=start, end=end
        )
        workers = readers(config.workers, ranks.device)
        return read(self.objective.items(), keys, self.micro, workers, ranks.device)

    def losses(self, learner: str, batch: Batch) -> dict[str, Tensor]:
        """Returns each loss term, summed over a micro-batch and divided by this rank's share of the batch."""
        terms = self.objective.losses(learner, batch, self.step)
        return {term: value.sum() / self.share for term, value in terms.items()}

    def update(self, batches: Iterator[Batch]) -> float:
        """Takes one step of every learner; returns the seconds spent waiting for data."""
        config, learners = self.config, self.objective.learners
        lr = learning_rate(config.optim, self.step, config.steps)
        count, waited = self.share // self.micro, 0.0
        kept: list[Batch] = []  # for the learners after the first
        for i, (name, learner) in enumerate(learners.items()):
            if not self.objective.trains(name, self.step):
                continue
            for j in range(count):
                if i == 0:
                    begin = time.perf_counter()
                    batch = next(batches)
                    waited += time.perf_counter() - begin
                    if len(learners) > 1:
                        kept.append(batch)
                else:
                    batch = kept[j]
                with learner.reducing(last=j == count - 1):
                    terms = self.losses(name, batch)
                    # a rank has the gradients of its own tokens, and those of all ranks are averaged
                    (terms["loss"] * config.sequence).backward()
                learner.weights.take_gradients()
                for column, term in enumerate(self.objective.columns):
                    if term in terms and (i == 0 or term != "loss"):
                        self.sums[column] += terms[term].detach()
            norm = learner.update(self.step, lr, wants_norm=self.logs_at(self.step + 1))
            if i == 0:
                self.norm = norm
        self.summed += 1
        self.step += 1
        return waited

    def logs_at(self, step: int) -> bool:
        return step % self.config.log_every == 0 or step == self.config.steps

    def run(self) -> int:
        """Trains to the last step, or to SIGTERM or Ctrl-C, saves a checkpoint, and returns the updates done."""
        with writing(self.out, self.ranks):
            return self._run()

    def _run(self) -> int:
        config, ranks = self.config, self.ranks
        verifier = Verifier(config.data) if config.verify and ranks.first and self.step < config.steps else None
        self.say(beginning(config, self.objective.about(), self.step))
        if ranks.first:
            write_config(self.out / CONFIG, config)
        log = RunLog(self.out, self.step, config.steps, ranks.first, config.tensorboard, self.objective.columns[0])
        batches = self.batches()
        since, waited, saved, counted = time.perf_counter(), 0.0, self.step, 0
        try:
            with self._signals():
                if verifier is not None:
                    verifier.start()
                while self.step < config.steps:
                    waited += self.update(batches)
                    counted += 1
                    log.step()
                    best = False
                    if self.logs_at(self.step):
                        line = self.line(counted, since, waited)
                        if self.evaluation is not None and self.step % config.eval.every == 0:
                            line |= self.evaluation.measure()
                            if best := self.evaluation.improves(line[self.evaluation.name]):
                                self.evaluation.remember(self.step, line[self.evaluation.name])
                        log.write(line)
                        since, waited, counted = time.perf_counter(), 0.0, 0
                    wrong = verifier is not None and verifier.wrong is not None
                    stop = ranks.any(self.stopping or wrong)
                    if self.step % config.save_every == 0 or self.step == config.steps or stop or best:
                        self.save()
                        saved = self.step
                        if best and self.evaluation is not None:
                            self.evaluation.write()
                    if config.sample.every and self.step % config.sample.every == 0:
                        self.objective.preview(self.step, self.out / "samples")
                    if stop:
                        break
        finally:
            batches.close()
            log.close()
            if verifier is not None:
                verifier.close()
        assert saved == self.step
        if verifier is not None and verifier.wrong is not None:
            raise DataError(f"{verifier.wrong} (stopped at step {self.step} with a checkpoint)")
        self.say(ending(config, self.step))
        return self.step

    def line(self, counted: int, since: float, waited: float) -> dict[str, Any]:
        """Returns a log line of means since the last one; only here does the loop wait for the GPU."""
        means = (self.ranks.sum(self.sums) / (self.summed * self.ranks.count)).tolist()
        assert self.norm is not None
        norm = self.norm.item()
        # measured once the GPU is done with the steps, which the host queues faster than they are computed
        seconds = max(time.perf_counter() - since, 1e-9)
        self.sums.zero_()
        self.summed = 0
        named = dict(zip(self.objective.columns, means, strict=True))
        first = self.objective.columns[0]
        if not math.isfinite(named[first]):
            raise FloatingPointError(f"train: {first} must be finite, got {named[first]} at step {self.step}")
        learner = next(iter(self.objective.learners.values()))
        return {
            "step": self.step,
            **named,
            **self.objective.gauges(),
            "grad_norm": norm,
            "lr": learner.optimizer.param_groups[0]["lr"],
            "clips_per_s": counted * self.config.batch / seconds,
            "data_wait": waited / seconds,
            "peak_bytes": peak_memory(self.ranks.device),
        }

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Makes SIGTERM and Ctrl-C end the run after the current step, and a second Ctrl-C end it at once."""

        def stop(number: int, frame: Any) -> None:
            if self.stopping and number == signal.SIGINT:
                raise KeyboardInterrupt
            self.stopping = True

        try:
            before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        except ValueError:  # only the main thread may set handlers; another's run is stopped by its caller
            yield
            return
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
