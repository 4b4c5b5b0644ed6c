"""`latte-fast train`, `sample` and `plot` as a person runs them; and the demo at a small size."""

import contextlib
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from latte_fast import Latte
from latte_fast.cli import main
from tests.helpers.films import layout

YAML = """
model: {patch_size: 4, hidden_size: 16, depth: 2, num_heads: 2}
optim: {lr: 1e-3}
frames: 2
size: 8
steps: 4
batch: 2
log_every: 2
"""


def run(*args: str, ok: bool = True) -> str:
    """In this process, whose imports are done: all that it prints, and the message it ends with."""
    out, before = io.StringIO(), sys.argv
    sys.argv = ["latte-fast", *args]
    end: object = None
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            main()
    except SystemExit as exit_:
        end = exit_.code
    finally:
        sys.argv = before
    text = f"{out.getvalue()}{end}"
    assert (end in (None, 0)) == ok, text
    return text


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    (folder / "x.yaml").write_text(YAML)
    run("train", "--config", str(folder / "x.yaml"), "--out", str(folder / "run"), "--model.depth", "4")
    return folder


def test_train_overrides_the_yaml(trained: Path) -> None:
    assert "depth: 4" in (trained / "run" / "config.yaml").read_text()
    assert "hidden_size: 16" in (trained / "run" / "config.yaml").read_text()
    lines = [json.loads(line) for line in (trained / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    assert {"loss", "lr", "grad_norm", "clips_per_s", "data_wait", "peak_bytes"} <= lines[0].keys()


def test_train_resumes_without_a_config(trained: Path) -> None:
    assert "new folder" in run("train", "--out", str(trained / "run"), "--steps", "6", ok=False)
    assert "resumed" in run("train", "--out", str(trained / "run"), "--steps", "6", "--resume")
    assert (trained / "run" / "checkpoints" / "step-0000006").is_dir()
    assert "nothing is left to do of 6 steps" in run("train", "--out", str(trained / "run"), "--resume")


def test_train_resumes_a_run_that_was_moved(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its configuration names the folder it was begun in; a new run there is not what is asked for."""
    (trained / "moved").mkdir()
    shutil.copytree(trained / "run", trained / "moved" / "run")
    config = trained / "moved" / "run" / "config.yaml"
    config.write_text(config.read_text().replace(str(trained / "run"), str(trained / "nowhere")))
    monkeypatch.chdir(trained / "moved")
    assert "resumed run/checkpoints" in run("train", "--resume", "--steps", "8")
    assert not (trained / "nowhere").exists() and Path("run/checkpoints/step-0000008").is_dir()


def test_train_names_a_wrong_key(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("stesp: 4")
    assert "got stesp" in run("train", "--config", str(tmp_path / "x.yaml"), ok=False)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--steps", "0"), "train: steps must be at least 1, got 0"),
        (("--optim.lr", "-1"), "train: optim.lr must be positive, and finite, got -1.0"),
        (("--optim.eps", "nan"), "train: optim.eps must be at least 0, and finite, got nan"),
        (("--seed", "-1"), "train: seed must be at least 0, got -1"),
        (("--data.clips", "0"), "data: clips must be at least 1, got 0"),
        (
            ("--diffusion.steps", "10", "--model.preset", "Latte-S/8"),
            'train: steps must be at least 21 diffusion steps for "linear", whose betas would reach 1, got 10',
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_train_refuses_in_one_line(args: tuple[str, ...], message: str, tmp_path: Path) -> None:
    assert run("train", "--out", str(tmp_path / "run"), *args, ok=False) == message


def test_a_run_that_diverges_ends_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(YAML.replace("1e-3", "1e30"))
    out = run("train", "--config", str(tmp_path / "x.yaml"), "--out", str(tmp_path / "run"), ok=False)
    assert "train: loss must be finite, got nan at step 2" in out


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_video_that_ends_a_run_is_named_in_one_line(tmp_path: Path, workers: str) -> None:
    for picture in (layout("taichi", tmp_path / "set") / "clip#1").iterdir():
        picture.write_bytes(picture.read_bytes()[:50])
    (tmp_path / "x.yaml").write_text(YAML)
    data = ("--data.kind", "taichi", "--data.path", str(tmp_path / "set"), "--data.on-error", "raise")
    args = ("--config", str(tmp_path / "x.yaml"), "--out", str(tmp_path / "run"), "--workers", workers, *data)
    last = run("train", *args, ok=False).splitlines()[-1]
    assert last.startswith("train: ") and "clip#1" in last and last.count(str(tmp_path)) == 1


def test_sample_and_plot(trained: Path) -> None:
    out = trained / "samples"
    args = ("sample", str(trained / "run"), "--out", str(out), "--count", "2", "--steps", "2")
    said = run(*args, "--format", "npz", "--classes", "circle up", "3")
    assert f"{out}: 2 samples, samples.json says what each shows" in said
    assert sorted(p.name for p in out.iterdir()) == ["000000.npz", "000001.npz", "samples.json"]
    assert "must not hold these samples yet" in run(*args, "--format", "npz", ok=False)
    assert "classes must be below 12" in run(*args, "--format", "png", "--classes", "x", ok=False)
    pytest.importorskip("matplotlib")
    assert "curves.png" in run("plot", str(trained / "run"))
    assert (trained / "run" / "curves.png").stat().st_size > 1000
    assert "log.jsonl" in run("plot", str(trained), ok=False)
    run("plot", str(trained / "run"), "--out", str(trained / "new" / "curves.svg"))
    assert "<svg" in (trained / "new" / "curves.svg").read_text()
    assert "plot: out must end in one of" in run("plot", str(trained / "run"), "--out", "curves.txt", ok=False)
    assert "File exists" in run("plot", str(trained / "run"), "--out", str(trained / "x.yaml" / "a.png"), ok=False)


def test_guidance_is_refused_where_there_are_no_classes(tmp_path: Path) -> None:
    sizes = {"input_size": 8, "patch_size": 4, "in_channels": 3, "hidden_size": 384, "depth": 2, "num_heads": 6}
    torch.save({"ema": Latte(**sizes, num_frames=2).state_dict()}, tmp_path / "faces.pt")
    args = ("sample", str(tmp_path / "faces.pt"), "--vae", "identity", "--out", str(tmp_path / "out"), "--count", "1")
    out = run(*args, "--steps", "2", "--scale", "3", ok=False)
    assert "sample: guidance must be left out for a model without classes, got 3.0" in out
    assert not (tmp_path / "out").exists()
    run(*args, "--steps", "2", "--format", "npz", "--scale", "1")


def test_plot_says_how_to_get_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    from latte_fast.runs.plot import pyplot

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(RuntimeError, match=r"pip install 'latte_fast\[plot\]'"):
        pyplot()


@pytest.mark.slow
def test_torchrun_is_the_same_command(trained: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    code = "import sys; from latte_fast.cli import main; sys.argv[0] = 'latte-fast'; main()"
    script = trained / "latte-fast.py"
    script.write_text(code)
    args = ["train", "--config", str(trained / "x.yaml"), "--out", str(trained / "two"), "--parallel", "fsdp"]
    done = subprocess.run([*torchrun, str(script), *args], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    args = [
        "sample",
        str(trained / "two"),
        "--out",
        str(trained / "pair"),
        "--count",
        "3",
        "--batch",
        "1",
        "--steps",
        "2",
    ]
    done = subprocess.run([*torchrun, str(script), *args], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list((trained / "pair").glob("*.mp4"))) == 3
