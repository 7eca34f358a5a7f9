"""The chunked loss is the plain one, to the last gradient."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.dataset.packing import IGNORE_INDEX
from pipeline.modeling.loss import CHUNK, token_losses

WIDTH, WORDS = 16, 97


def setting(
    tokens: int, ignored: float = 0.0, seed: int = 0, frozen: bool = False
) -> tuple[Any, Any, Any]:
    """Hidden states, head and targets, some of them ignored."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, WIDTH, generator=generator, requires_grad=True)
    head = torch.nn.Linear(WIDTH, WORDS)
    with torch.no_grad():
        head.weight.normal_(generator=generator)
        head.bias.normal_(generator=generator)
    head.requires_grad_(not frozen)
    targets = torch.randint(WORDS, (tokens,), generator=generator)
    targets[torch.rand(tokens, generator=generator) < ignored] = IGNORE_INDEX
    return hidden, head, targets


def plainly(hidden: Any, head: Any, targets: Any) -> Any:
    import torch

    logits = head(hidden)
    return torch.nn.functional.cross_entropy(
        logits, targets, reduction="none", ignore_index=IGNORE_INDEX
    )


EDGES = [1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 3]


@pytest.mark.parametrize("tokens", EDGES)
@pytest.mark.parametrize("ignored", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("frozen", [False, True])
def test_losses_and_gradients_are_those_of_plain_cross_entropy(
    tokens: int, ignored: float, frozen: bool
) -> None:
    import torch

    weights = torch.linspace(0.1, 2.0, tokens)
    gradients, losses = [], []
    for function in (token_losses, plainly):
        hidden, head, targets = setting(tokens, ignored, frozen=frozen)
        found = function(hidden, head, targets)
        (found * weights).sum().backward()
        losses.append(found.detach())
        gradients.append([hidden.grad, head.weight.grad, head.bias.grad])
    assert losses[0].shape == (tokens,)
    assert losses[0].dtype == torch.float32
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-6, atol=1e-6)
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("frozen", [False, True])
def test_an_ignored_token_costs_nothing_and_teaches_nothing(frozen: bool) -> None:
    hidden, head, targets = setting(CHUNK + 10, 0.5, frozen=frozen)
    losses = token_losses(hidden, head, targets)
    losses.sum().backward()
    ignored = targets == IGNORE_INDEX
    assert 0 < int(ignored.sum()) < len(targets)
    assert not losses[ignored].any()
    assert losses[~ignored].all()
    assert hidden.grad is not None
    assert not hidden.grad[ignored].any()
    assert hidden.grad[~ignored].any(dim=1).all()


def test_without_gradients_the_numbers_are_the_same() -> None:
    import torch

    hidden, head, targets = setting(CHUNK + 5, 0.2)
    learning = token_losses(hidden, head, targets)
    with torch.no_grad():
        judging = token_losses(hidden, head, targets)
    assert learning.requires_grad
    assert not judging.requires_grad
    assert torch.equal(learning.detach(), judging)


def test_half_precision_states_are_judged_in_full_precision() -> None:
    import torch

    hidden, head, targets = setting(CHUNK)
    states, half = hidden.detach().bfloat16(), head.bfloat16()
    found = token_losses(states, half, targets)
    assert found.dtype == torch.float32
    wanted = torch.nn.functional.cross_entropy(half(states).double(), targets, reduction="none")
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)


def test_logits_beyond_the_reach_of_half_precision_stay_finite() -> None:
    import torch

    hidden, head, targets = setting(20)
    with torch.no_grad():
        head.weight.mul_(1e4)
    losses = token_losses(hidden, head, targets)
    losses.sum().backward()
    assert torch.isfinite(losses).all()
    assert hidden.grad is not None
    assert torch.isfinite(hidden.grad).all()


def test_the_gradient_under_a_frozen_head_is_as_good_in_half_precision() -> None:
    import torch

    found = []
    for frozen in (False, True):
        hidden, head, targets = setting(CHUNK + 7, 0.2, frozen=frozen)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses = token_losses(hidden, head, targets)
        (losses.sum() / 1021).backward()  # not a number that bf16 has
        found.append((losses.detach(), hidden.grad))
    assert torch.equal(found[0][0], found[1][0])
    hidden, head, targets = setting(CHUNK + 7, 0.2)
    (plainly(hidden, head, targets).sum() / 1021).backward()
    errors = [float((grad - hidden.grad).norm() / hidden.grad.norm()) for _, grad in found]
    assert errors[1] <= 1.1 * errors[0] < 0.02


@pytest.mark.parametrize("frozen", [False, True])
def test_the_logits_of_a_whole_batch_never_exist_at_once(frozen: bool) -> None:
    import torch

    class Head(torch.nn.Linear):
        """Notes the largest logits it was asked for."""

        largest = 0

        def forward(self, states: Any) -> Any:
            self.largest = max(self.largest, len(states))
            return super().forward(states)

    hidden, _, targets = setting(5 * CHUNK)
    head = Head(WIDTH, WORDS).requires_grad_(not frozen)
    token_losses(hidden, head, targets).sum().backward()
    assert head.largest == CHUNK
