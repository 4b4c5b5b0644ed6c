"""The codebook: ten updates against the authors' formula, its start from data, restart of dead codes, whole batches."""

import pytest
import torch
from torch import Tensor

from latte_fast import reference
from latte_fast.models.tats.codebook import Codebook
from latte_fast.testing import relative_error


def latents(seed: int, batch: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 6, 2, 4, 4, generator=generator)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 3e-6), (torch.float64, 1e-11)], ids=["fp32", "fp64"])
def test_ten_updates_equal_the_oracle(dtype: torch.dtype, limit: float) -> None:
    ours, oracle = Codebook(24, 6).to(dtype).train(), reference.vqgan.Codebook(24, 6).double().train()
    oracle.start(latents(99).movedim(1, -1).flatten(0, -2)[:24].double())
    ours.load_state_dict(oracle.state_dict())
    for step in range(10):
        z = latents(step).to(dtype).requires_grad_()
        wide = z.detach().double().requires_grad_()
        got, want = ours(z), oracle(wide)
        assert torch.equal(got.indices, want["encodings"])
        dout = latents(step + 50)
        (got.embeddings * dout.to(dtype)).sum().add(got.commitment.mean()).backward()
        (want["embeddings"] * dout.double()).sum().add(want["commitment_loss"]).backward()
        assert relative_error(z.grad, wide.grad) <= limit  # type: ignore[arg-type]
        assert relative_error(got.embeddings, want["embeddings"]) <= limit
        assert relative_error(got.perplexity, want["perplexity"]) <= 1e-6
        for name in ("embeddings", "N", "z_avg"):
            assert relative_error(getattr(ours, name), getattr(oracle, name)) <= limit, (step, name)
    assert len(want["encodings"].unique()) > 12 and (oracle.N < 1).any()


def test_waiting_updates_are_of_the_whole_batch() -> None:
    books = [Codebook(24, 6).double().train() for _ in range(2)]
    for book in books:
        book.source = lambda: torch.Generator().manual_seed(4)
        book.embeddings.copy_(latents(9).movedim(1, -1).flatten(0, -2)[:24])
        book.z_avg.copy_(book.embeddings), book.N.fill_(1)
    whole, parts = books
    parts.waits = True
    z = latents(1).double()
    before = parts.embeddings.clone()
    whole(z)
    for part in z.split(1):
        parts(part)
    assert torch.equal(parts.embeddings, before)
    parts.update()
    for name in ("embeddings", "N", "z_avg", "perplexity", "usage"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("batch", [1, 4])
def test_starts_from_latents(batch: int) -> None:
    """Each code is a latent, and no latent serves twice; of too few, some serve twice with a little noise."""
    book = Codebook(60, 6).train()
    book.source = lambda: torch.Generator().manual_seed(1)
    z = latents(0, batch)
    assert not book.initialised
    book.waits = True
    book(z)
    flat = z.movedim(1, -1).flatten(0, -2)
    distances = torch.cdist(book.embeddings.double(), flat.double()).min(1)
    assert distances.values.max() < (1e-3 if batch == 4 else 0.05)
    assert len(distances.indices.unique()) == min(60, len(flat)) and book.initialised
    same = Codebook(60, 6).train()
    same.source, same.waits = book.source, True
    same(z)
    assert torch.equal(same.embeddings, book.embeddings)


def test_dead_codes_start_again() -> None:
    book = Codebook(24, 6, restart=1.0).train()
    z = latents(0)
    flat = z.movedim(1, -1).flatten(0, -2)
    book.embeddings.copy_(flat[:24]), book.z_avg.copy_(flat[:24]), book.N.fill_(2)
    book.embeddings[5:] += 100
    book.z_avg[5:] += 100
    book.N[5:] = 1.0
    far = Codebook(24, 6).train()
    far.load_state_dict(book.state_dict())
    book(z), far(z)
    assert torch.cdist(book.embeddings[5:].double(), flat.double()).min(1).values.max() < 1e-4
    assert far.embeddings[5:].min() > 50
    assert (book.N >= 1).all() and book(z).perplexity > 2 * far(z).perplexity
