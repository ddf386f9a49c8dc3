"""What a user embedding tells of a vector: losses against plain loops, samples against the
distribution they were trained on.
"""

import math

import pytest
import torch
from karmafunnel.errors import KarmafunnelError
from karmafunnel.models.karma import Cosine, Diffusion, Direct, FlowMatching
from karmafunnel.models.karma.visual_losses import VectorLoss
from torch.nn import functional as F

LOSSES = [Direct(), Cosine(), Diffusion(steps=5, width=16), FlowMatching(steps=3, width=16)]
LOSSES += [type(x)(**{**vars(x), "history": True}) for x in LOSSES]


def drawn(n: int = 7, d_z: int = 4, d_v: int = 3, d_h: int = 5):
    torch.manual_seed(1)
    z, goal = (F.normalize(torch.randn(n, d), dim=1) for d in (d_z, d_v))
    return z, goal, 30 * torch.randn(n, d_h)


def told(value: VectorLoss, z: torch.Tensor, h: torch.Tensor) -> list[float]:
    """Row 0 of what a network is told."""
    cells = [x * math.sqrt(len(z[0])) for x in z[0].tolist()]
    if value.history:
        size = math.sqrt(sum(x * x for x in h[0].tolist()) / len(h[0]))
        cells += [x / size for x in h[0].tolist()]
    return cells


def slowly(value: VectorLoss, net, z, goal, h, seed: int) -> list[float]:
    """The loss of each row by plain loops over dimensions."""
    generator = torch.Generator().manual_seed(seed)
    if not isinstance(value, Direct | Cosine):
        times = torch.rand(len(z), generator=generator).tolist()
        noises = torch.randn(goal.shape, generator=generator).tolist()
    found = []
    for i in range(len(z)):
        x = [g * math.sqrt(len(goal[i])) for g in goal[i].tolist()]
        cells = told(value, z[i : i + 1], h[i : i + 1])
        if isinstance(value, Direct | Cosine):
            out, wanted = net(torch.tensor(cells)).tolist(), x
        else:
            t, eps = times[i], noises[i]
            if isinstance(value, Diffusion):
                share = math.cos(min(t, 0.999) * math.pi / 2) ** 2
                parts = zip(x, eps, strict=True)
                seen = [math.sqrt(share) * a + math.sqrt(1 - share) * b for a, b in parts]
                wanted = eps
            else:
                seen = [(1 - t) * b + t * a for a, b in zip(x, eps, strict=True)]
                wanted = [a - b for a, b in zip(x, eps, strict=True)]
            clock = [math.sin(math.pi * t), math.cos(math.pi * t)]
            out = net(torch.tensor(cells + seen + clock)).tolist()
        if isinstance(value, Cosine):
            dot = sum(a * b for a, b in zip(out, wanted, strict=True))
            found.append(1 - dot / math.hypot(*out) / math.hypot(*wanted))
        else:
            squares = [(a - b) ** 2 for a, b in zip(out, wanted, strict=True)]
            found.append(sum(squares) / len(squares))
    return found


@pytest.mark.parametrize("value", LOSSES, ids=repr)
def test_losses_are_those_of_plain_loops(value: VectorLoss) -> None:
    z, goal, h = drawn()
    decoder = value.decoder(4, 3, 5)
    each = decoder(z, goal, torch.Generator().manual_seed(3), h)
    expected = slowly(value, decoder.net, z, goal, h, 3)
    torch.testing.assert_close(each.tolist(), expected, rtol=1e-5, atol=1e-5)
    each.sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in decoder.parameters())


@pytest.mark.parametrize("value", LOSSES, ids=repr)
def test_a_vector_hangs_on_its_embedding_its_noise_and_where_asked_its_history(value) -> None:
    z, _, h = drawn()
    decoder, noise = value.decoder(4, 3, 5), torch.randn(7, 3)
    one = decoder.sample(z, noise, h)
    assert torch.equal(one, decoder.sample(z, noise, h))
    torch.testing.assert_close(one[2:4], decoder.sample(z[2:4], noise[2:4], h[2:4]))
    assert not torch.allclose(one, decoder.sample(z.roll(1, 0), noise, h))
    assert torch.equal(one, decoder.sample(z, noise, h.flip(1))) is not value.history
    still = isinstance(value, Direct | Cosine)
    assert torch.equal(one, decoder.sample(z, noise + 1, h)) is still


@pytest.mark.parametrize("value", [Diffusion(steps=50, width=64), FlowMatching(width=64)], ids=repr)
@pytest.mark.slow
def test_samples_have_the_mean_and_the_spread_of_what_was_seen(value: VectorLoss) -> None:
    # two embeddings, each with vectors of its own mean and, by dimension, its own deviation
    torch.manual_seed(0)
    means = torch.tensor([[0.9, -0.3, 0.0], [-0.6, 0.6, 0.5]])
    spread = torch.tensor([[0.05, 0.2, 0.4], [0.4, 0.1, 0.05]])
    decoder = value.decoder(2, 3, 0)
    generator = torch.Generator().manual_seed(0)
    optimiser = torch.optim.Adam(decoder.parameters(), lr=4e-3)
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 2500)
    for _ in range(2500):
        which = torch.randint(2, (512,), generator=generator)
        goal = means[which] + spread[which] * torch.randn(512, 3, generator=generator)
        optimiser.zero_grad()
        decoder(torch.eye(2)[which], goal, generator).mean().backward()
        optimiser.step()
        rates.step()
    for which in (0, 1):
        z = torch.eye(2)[[which]].expand(4000, 2)
        found = decoder.sample(z, torch.randn(4000, 3, generator=generator))
        torch.testing.assert_close(found.mean(dim=0), means[which], atol=0.05, rtol=0)
        torch.testing.assert_close(found.std(dim=0), spread[which], atol=0.06, rtol=0)


def test_a_straight_field_arrives_in_one_step() -> None:
    # where the velocity does not hang on place or time, every number of steps ends alike
    ends = []
    for steps in (1, 7):
        torch.manual_seed(0)
        decoder = FlowMatching(steps=steps, width=8).decoder(2, 3, 0)
        torch.nn.init.zeros_(decoder.net[0].weight[:, 2:])
        ends.append(decoder.sample(torch.eye(2), torch.ones(2, 3)))
    torch.testing.assert_close(*ends)


@pytest.mark.parametrize("kind", [Diffusion, FlowMatching])
def test_wrong_numbers_are_refused(kind: type) -> None:
    for wrong in ({"steps": 0}, {"width": 0}, {"steps": 2.5}, {"history": 1}):
        with pytest.raises(KarmafunnelError, match=kind.__name__):
            kind(**wrong)
