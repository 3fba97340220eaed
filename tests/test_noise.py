import torch

from engine.live.noise import normal, uniform


def test_noise_belongs_to_its_key() -> None:
    """The same key gives the same numbers, whatever was drawn between; any other key gives others."""
    first = normal((2, 3), 7, "render", 0)
    torch.randn(5)
    assert torch.equal(normal((2, 3), 7, "render", 0), first)
    for key in ((8, "render", 0), (7, "plan", 0), (7, "render", 1)):
        assert not torch.equal(normal((2, 3), *key), first)


def test_noise_has_its_distribution() -> None:
    """`normal` has mean 0 and deviation 1, `uniform` lies in [0, 1)."""
    gauss, flat = normal((10_000,), "a"), uniform((10_000,), "a")
    assert abs(gauss.mean()) < 0.05 and abs(gauss.std() - 1) < 0.05
    assert flat.min() >= 0 and flat.max() < 1 and abs(flat.mean() - 0.5) < 0.02


def test_noise_is_the_same_on_every_machine() -> None:
    """The numbers of a key are pinned: CPU traces rendered earlier must give the same video."""
    assert torch.allclose(uniform((3,), 1, "plan", 2), torch.tensor([0.50016654, 0.18625986, 0.47767657]), atol=1e-6)
