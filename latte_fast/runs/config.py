"""The configuration of a training run: frozen dataclasses, read from YAML, overridden on the command line."""

import math
from dataclasses import dataclass, field
from typing import Literal

from latte_fast.data import DataConfig
from latte_fast.diffusion.noise import SEEDS
from latte_fast.models.config import ModelConfig, require
from latte_fast.models.tats.config import VQGANConfig

# name of the configuration file in a run's folder
CONFIG = "config.yaml"


@dataclass(frozen=True)
class DiffusionConfig:
    """The diffusion process that the model is trained with.

    Args:
        schedule: noise schedule.
        steps: number of steps of the process.
        prediction: what the model predicts: the noise (epsilon), x_0 (start_x), v, or for rectified flow the
            difference of noise and x_0 (flow), which has a schedule of its own.
        timesteps: distribution of the time steps in training: uniform, or lognormal, dense in the middle.
        shift: mean of lognormal time steps, sigmoid(N(shift, 1)); below 0 favours less noise.
        min_snr: gamma of min-SNR loss weighting, usually 5; by default no weighting.
        frame_steps: share of clips whose frames have time steps of their own, drawn independently (Diffusion Forcing),
            as rollouts of long films need; the frames of the others share one.
    """

    schedule: Literal["linear", "squaredcos_cap_v2"] = "linear"
    steps: int = 1000
    prediction: Literal["epsilon", "start_x", "v", "flow"] = "epsilon"
    timesteps: Literal["uniform", "lognormal"] = "uniform"
    shift: float = 0.0
    min_snr: float | None = None
    frame_steps: float = 0.0


@dataclass(frozen=True)
class OptimConfig:
    """AdamW, the learning rate, and the EMA of the weights.

    Args:
        lr: learning rate at its highest.
        betas: betas of AdamW.
        eps: epsilon of AdamW.
        weight_decay: weight decay of AdamW.
        rate: schedule after the warm-up: constant, or a cosine that reaches final_share * lr one step after the last.
        warmup: number of steps over which the learning rate rises linearly.
        final_share: learning rate at the end of a cosine, as a share of lr.
        clip: largest gradient norm, to which larger gradients are scaled down; by default no clipping.
        ema: decay of the EMA of the weights, which samples are drawn from.
        ema_warmup: whether the decay rises from 0.1 as (1 + step) / (10 + step), for short runs.
    """

    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    rate: Literal["constant", "cosine"] = "constant"
    warmup: int = 0
    final_share: float = 0.0
    clip: float | None = None
    ema: float = 0.9999
    ema_warmup: bool = False

    def initial_share(self, steps: int) -> float:
        """Returns the share of the initial weights in the EMA after so many updates."""
        if not self.ema_warmup:
            return self.ema**steps
        # beyond some thousands of updates nothing is left that a product could show
        return math.prod(min(self.ema, (1 + i) / (10 + i)) for i in range(min(steps, 10_000)))


@dataclass(frozen=True)
class SampleConfig:
    """Samples drawn during training from the EMA weights.

    Args:
        every: number of training steps between previews; 0 draws none.
        count: number of samples.
        method: sampler: ddpm, ddim, dpm++ (DPM-Solver++(2M)), unipc (UniPC-2), heun, or euler, which is ddim's step.
        steps: number of sampling steps.
        scale: guidance scale; 1 is no guidance.
        plan: file of a plan that `latte-fast calibrate` wrote for this sampler, these steps, guidance and size, of
            whatever weights: what it loses with those in training is not known.
    """

    every: int = 0
    count: int = 8
    method: Literal["ddpm", "ddim", "dpm++", "unipc", "euler", "heun"] = "ddim"
    steps: int = 50
    scale: float = 4.0
    plan: str = ""


@dataclass(frozen=True)
class EvalConfig:
    """A metric measured during training, of what the EMA weights make.

    A Latte's samples are compared with clips of the training set; what a 3D-VQGAN decodes of the tokens of clips that
    it is not trained on, with these clips.

    Args:
        every: number of training steps between measurements, a multiple of log_every; 0 measures nothing.
        count: number of samples, and of real clips.
        metric: name of a metric with a detector, as for `latte-fast evaluate`.
        detector: the detector's file, or transnetv2 for the small network in an installed wheel.
        path: for a VQGAN of films, the folder of the clips that it is judged on, laid out as data.path; empty for that.
        split: for a VQGAN of films, a text file that lists these clips, as data.split does; empty to take all.
    """

    every: int = 0
    count: int = 64
    metric: str = "fvd"
    detector: str = "transnetv2"
    path: str = ""
    split: str = ""


@dataclass(frozen=True)
class VQGANTraining:
    """The 3D-VQGAN that `--objective vqgan` trains, and its losses, weighted as the authors weight them.

    Args:
        model: sizes of the 3D-VQGAN.
        restart: a code whose average count a batch falls below this starts again from a latent; 0 never does.
        l1: weight of the mean absolute difference of pixels, whose values the losses take as half of [-1, 1].
        perceptual: TorchScript file of a network that returns the distance (B,) of two batches of pictures, each
            (B, 3, H, W) in [-0.5, 0.5], for one frame of each clip; by default no such loss.
        perceptual_weight: weight of that distance.
        image_gan: weight of the discriminator of single frames.
        video_gan: weight of the discriminator of clips.
        matching: weight of the differences of the discriminators' features.
        start: first step in which the discriminators train and count.
        gan: the discriminators' loss: hinge or vanilla.
        width: channels of the discriminators' first convolution.
        layers: number of the discriminators' convolutions with a norm.
    """

    model: VQGANConfig = field(default_factory=VQGANConfig)
    restart: float = 0.0
    l1: float = 4.0
    perceptual: str | None = None
    perceptual_weight: float = 4.0
    image_gan: float = 1.0
    video_gan: float = 1.0
    matching: float = 4.0
    start: int = 10_000
    gan: Literal["hinge", "vanilla"] = "hinge"
    width: int = 64
    layers: int = 3

    def __post_init__(self) -> None:
        for name in ("restart", "l1", "perceptual_weight", "image_gan", "video_gan", "matching", "start"):
            value = getattr(self, name)
            require(0 <= value < math.inf, f"vqgan.{name}", "at least 0, and finite", value)
        for name in ("width", "layers"):
            require(getattr(self, name) >= 1, f"vqgan.{name}", "at least 1", getattr(self, name))


@dataclass(frozen=True)
class TokenTraining:
    """The transformer that `--objective tokens` trains on a 3D-VQGAN's tokens; its other sizes come from the data.

    Args:
        n_layer: number of blocks.
        n_head: number of attention heads.
        n_embd: width.
        every: distance of a clip's latent frames that the model sees: 1 takes all, 4 key frames for a hierarchy.
        gap: whether the model fills the latent frames between the first and the last of a clip, as a hierarchy needs.
        side: height and width in codes of the window of a frame that the model sees, drawn anew for each clip; 0 is the
            whole frame.
        classes: whether the class of a clip is given to the model, where the data has classes.
        captions: JSON file of captions by clip, as `latte-fast encode-text` takes, which are given instead of classes.
        bpe: CLIP's vocabulary of byte pairs, bpe_simple_vocab_16e6.txt.gz, by which captions become tokens.
        words: number of tokens of a caption, with its start, its end and padding.
        sound: folder of `latte-fast encode-audio` with the sounds of the clips, which are given instead of classes.
        sound_vae: VQGAN of these sounds, by which samples hear theirs.
        noise: largest share of random codes in the first frames of half of the clips, so that the model learns to go
            on from a long film's mistakes; it learns nothing of those frames themselves. A model that fills gaps has
            them in the first frame and the last.
    """

    n_layer: int = 24
    n_head: int = 16
    n_embd: int = 1024
    every: int = 1
    gap: bool = False
    side: int = 0
    classes: bool = True
    captions: str = ""
    bpe: str = ""
    words: int = 256
    sound: str = ""
    sound_vae: str = ""
    noise: float = 0.0

    def __post_init__(self) -> None:
        for name in ("n_layer", "n_head", "n_embd", "every", "words"):
            require(getattr(self, name) >= 1, f"tokens.{name}", "at least 1", getattr(self, name))
        require(self.side >= 0, "tokens.side", "at least 0", self.side)
        alone = not self.side or not (self.gap or self.every > 1)
        require(alone, "tokens.side", "0 for key frames and for a model that fills gaps", self.side)
        require(0 <= self.noise < 1, "tokens.noise", "at least 0 and below 1", self.noise)
        rule = f"a multiple of tokens.n_head = {self.n_head}"
        require(self.n_embd % self.n_head == 0, "tokens.n_embd", rule, self.n_embd)
        require(self.every == 1 or not self.gap, "tokens.every", "1 for a model that fills gaps", self.every)
        require(
            not self.gap or not self.captions, "tokens.captions", "empty for a model that fills gaps", self.captions
        )
        alone = not self.sound or not (self.gap or self.captions or self.every > 1)
        rule = "empty with captions, for key frames, and for a model that fills gaps"
        require(alone, "tokens.sound", rule, self.sound)
        rule = "CLIP's vocabulary with captions, and empty without"
        require(bool(self.captions) == bool(self.bpe), "tokens.bpe", rule, self.bpe or "none")


@dataclass(frozen=True)
class TrainConfig:
    """Train a Latte, a 3D-VQGAN or a transformer on its tokens: clips in, a run folder with weights and logs out.

    Args:
        out: folder of the run; a folder with files in it is refused unless the run is resumed.
        objective: what is trained: a Latte that denoises clips (denoising), or a 3D-VQGAN that turns clips into tokens
            and back (vqgan), which takes its options from `vqgan` and none from `model`, `diffusion` and `vae`; or a
            transformer on tokens (tokens), which takes its options from `tokens`, and whose `vae` is a VQGAN.
        frames: number of frames in a clip.
        size: height and width in pixels.
        images: number of single images beside each clip (joint image-video training).
        vae: folder of a diffusers AutoencoderKL, or "identity" for pixels; with latents or tokens it only decodes
            samples.
        steps: total number of updates.
        batch: number of clips in an update, over all ranks and micro-batches.
        micro_batch: number of clips in one forward of a rank, which accumulates gradients; by default its whole share.
        seed: seed of everything random; noise, time steps and dropped labels follow from it and the sample's number.
        precision: fp32; bf16, which is autocast on fp32 weights; or bf16-weights, with an fp32 master copy.
        parallel: how ranks share the model: ddp replicates it, fsdp shards it; auto is ddp where there are several.
        sequence: number of ranks that share each clip's tokens, for long clips; the others have clips of their own.
        compile: whether each block is compiled.
        graphs: whether the model's forward and backward are replayed as CUDA graphs, for a GPU that waits for the host
            to launch its kernels; in one process.
        fp8: whether the blocks' linear layers train in fp8 (needs torchao and a GPU that has it).
        pretrained: weights to start from: a .pt or .safetensors of upstream, of this package or of an ImageNet DiT; for
            text to video also the folder of a Latte, which sets the model's sizes, or of a PixArt-alpha.
        workers: number of processes for each rank that read data, 0 to read in the training process; by default up to
            4 with a GPU, and 0 on a CPU, whose cores are busy training.
        log_every: number of steps between log lines.
        save_every: number of steps between checkpoints; the last step always has one.
        keep: number of checkpoints to keep.
        tensorboard: whether to write TensorBoard files too (needs tensorboard).
        verify: whether the checksums of stored latents and captions are compared while the run trains.
    """

    out: str = "run"
    objective: Literal["denoising", "vqgan", "tokens"] = "denoising"
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    vqgan: VQGANTraining = field(default_factory=VQGANTraining)
    tokens: TokenTraining = field(default_factory=TokenTraining)
    frames: int = 16
    size: int = 256
    images: int = 0
    vae: str = "identity"
    steps: int = 100_000
    batch: int = 8
    micro_batch: int | None = None
    seed: int = 0
    precision: Literal["fp32", "bf16", "bf16-weights"] = "fp32"
    parallel: Literal["auto", "none", "ddp", "fsdp"] = "auto"
    sequence: int = 1
    compile: bool = False
    graphs: bool = False
    fp8: bool = False
    pretrained: str | None = None
    workers: int | None = None
    log_every: int = 10
    save_every: int = 1000
    keep: int = 3
    tensorboard: bool = False
    verify: bool = True

    def __post_init__(self) -> None:
        for name in ("frames", "size", "steps", "batch", "log_every", "save_every", "keep", "sequence"):
            require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        for name in ("images", "workers", "seed"):
            require((getattr(self, name) or 0) >= 0, name, "at least 0", getattr(self, name))
        micro = self.micro_batch
        require(micro is None or micro >= 1, "micro_batch", "at least 1", micro)
        optim, diffusion, sample = self.optim, self.diffusion, self.sample
        require(self.seed < SEEDS, "seed", "below 2^64", self.seed)
        require(0 < optim.lr < math.inf, "optim.lr", "positive, and finite", optim.lr)
        require(all(0 <= b < 1 for b in optim.betas), "optim.betas", "in [0, 1)", optim.betas)
        require(0 <= optim.eps < math.inf, "optim.eps", "at least 0, and finite", optim.eps)
        require(optim.warmup >= 0, "optim.warmup", "at least 0", optim.warmup)
        require(0 <= optim.ema < 1, "optim.ema", "in [0, 1)", optim.ema)
        require(optim.clip is None or optim.clip > 0, "optim.clip", "positive", optim.clip)
        require(optim.weight_decay >= 0, "optim.weight_decay", "at least 0", optim.weight_decay)
        require(0 <= optim.final_share <= 1, "optim.final_share", "in [0, 1]", optim.final_share)
        require(diffusion.steps >= 1, "diffusion.steps", "at least 1", diffusion.steps)
        min_snr = diffusion.min_snr
        require(min_snr is None or min_snr > 0, "diffusion.min_snr", "positive", min_snr)
        if diffusion.prediction == "flow" and self.objective == "denoising":
            require(not self.model.learn_sigma, "model.learn_sigma", "False for rectified flow", True)
            require(min_snr is None, "diffusion.min_snr", "left out for rectified flow", min_snr)
            require(
                diffusion.schedule == "linear", "diffusion.schedule", "left out for rectified flow", diffusion.schedule
            )
            require(sample.method != "ddpm", "sample.method", "other than ddpm for rectified flow", sample.method)
        require(math.isfinite(diffusion.shift), "diffusion.shift", "finite", diffusion.shift)
        own = diffusion.frame_steps
        require(0 <= own <= 1, "diffusion.frame_steps", "in [0, 1]", own)
        rule = "0 where a patch spans frames, which share a step"
        require(not own or self.model.patch_frames == 1, "diffusion.frame_steps", rule, own)
        require(0 <= sample.scale < math.inf, "sample.scale", "at least 0, and finite", sample.scale)
        require(sample.every >= 0, "sample.every", "at least 0", sample.every)
        require(sample.count >= 1, "sample.count", "at least 1", sample.count)
        require(self.eval.every >= 0, "eval.every", "at least 0", self.eval.every)
        rule = f"in [2, diffusion.steps = {diffusion.steps}]"
        require(not sample.plan or sample.method != "ddpm", "sample.plan", "left out for ddpm", sample.plan)
        drawn = sample.every or self.eval.every
        require(not drawn or 2 <= sample.steps <= diffusion.steps, "sample.steps", rule, sample.steps)
