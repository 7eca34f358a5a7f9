"""The chunked loss equals plain cross-entropy, including its gradients."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest

from pipeline.modeling.loss import CHUNK_TOKENS, token_losses
from pipeline.modeling.packed_batch import IGNORE_INDEX

WIDTH, VOCABULARY = 16, 97


def make_inputs(
    tokens: int, ignored: float = 0.0, seed: int = 0, frozen: bool = False
) -> tuple[Any, Any, Any]:
    """Hidden states, output head, and targets of which a share is ignored."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, WIDTH, generator=generator, requires_grad=True)
    head = torch.nn.Linear(WIDTH, VOCABULARY)
    with torch.no_grad():
        head.weight.normal_(generator=generator)
        head.bias.normal_(generator=generator)
    head.requires_grad_(not frozen)
    targets = torch.randint(VOCABULARY, (tokens,), generator=generator)
    targets[torch.rand(tokens, generator=generator) < ignored] = IGNORE_INDEX
    return hidden, head, targets


def plain_losses(hidden: Any, head: Any, targets: Any) -> Any:
    """Cross-entropy over all logits at once."""
    import torch

    logits = head(hidden).float()
    return torch.nn.functional.cross_entropy(
        logits, targets, reduction="none", ignore_index=IGNORE_INDEX
    )


def straight_through_losses(hidden: Any, head: Any, targets: Any) -> Any:
    """Losses under a frozen head, whose gradient is added by a term that is zero."""
    import torch

    chunks = []
    for start in range(0, len(targets), CHUNK_TOKENS):
        states, chunk = hidden[start : start + CHUNK_TOKENS], targets[start : start + CHUNK_TOKENS]
        detached = states.detach().requires_grad_()
        losses = plain_losses(detached, head, chunk)
        (gradient,) = torch.autograd.grad(losses.sum(), detached)
        zero = (states - detached.detach()).float()
        chunks.append(losses.detach() + (zero * gradient.float()).sum(dim=1))
    return torch.cat(chunks)


EDGES = [1, 2, CHUNK_TOKENS - 1, CHUNK_TOKENS, CHUNK_TOKENS + 1, 2 * CHUNK_TOKENS + 3]


@pytest.mark.parametrize("tokens", EDGES)
@pytest.mark.parametrize("ignored", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("frozen", [False, True])
def test_losses_and_gradients_are_those_of_plain_cross_entropy(
    tokens: int, ignored: float, frozen: bool
) -> None:
    import torch

    weights = torch.linspace(0.1, 2.0, tokens)
    gradients, losses = [], []
    for function in (token_losses, plain_losses):
        hidden, head, targets = make_inputs(tokens, ignored, frozen=frozen)
        result = function(hidden, head, targets)
        (result * weights).sum().backward()
        losses.append(result.detach())
        gradients.append([hidden.grad, head.weight.grad, head.bias.grad])
    assert losses[0].shape == (tokens,)
    assert losses[0].dtype == torch.float32
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-6, atol=1e-6)
    for chunked, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(chunked, plain, rtol=1e-5, atol=1e-5)


def run_plainly(function: Callable[..., Any], *inputs: Any) -> Any:
    return function(*inputs)


def run_checkpointed(function: Callable[..., Any], *inputs: Any) -> Any:
    """Discard what the forward pass saved, and compute it again in the backward pass."""
    from torch.utils.checkpoint import checkpoint

    return checkpoint(function, *inputs, use_reentrant=False)


@pytest.mark.parametrize("run", [run_plainly, run_checkpointed])
@pytest.mark.parametrize("state_type", ["float32", "bfloat16"])
@pytest.mark.parametrize("autocast", [False, True])
def test_the_autograd_function_equals_the_straight_through_form_bit_for_bit(
    run: Callable[..., Any], state_type: str, autocast: bool
) -> None:
    import torch

    results = []
    for function in (token_losses, straight_through_losses):
        hidden, head, targets = make_inputs(2 * CHUNK_TOKENS + 3, 0.2, frozen=True)
        states = hidden.to(getattr(torch, state_type))
        head = head.to(torch.float32 if autocast else states.dtype)
        context = torch.autocast("cpu", dtype=torch.bfloat16) if autocast else nullcontext()
        with context:
            losses = run(function, states, head, targets)
        factors = torch.linspace(0.1, 2.0, len(losses)) / 1021  # numbers that bf16 rounds
        (losses * factors).sum().backward()
        results.append((losses.detach(), hidden.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert results[0][1].any()


def test_a_second_derivative_under_a_frozen_head_is_an_error() -> None:
    """It would be wrong: the stored gradient is a constant for autograd."""
    import torch

    hidden, head, targets = make_inputs(5, frozen=True)
    loss = token_losses(hidden, head, targets).square().sum()
    (gradient,) = torch.autograd.grad(loss, hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("frozen", [False, True])
def test_an_ignored_token_has_no_loss_and_no_gradient(frozen: bool) -> None:
    hidden, head, targets = make_inputs(CHUNK_TOKENS + 10, 0.5, frozen=frozen)
    losses = token_losses(hidden, head, targets)
    losses.sum().backward()
    ignored = targets == IGNORE_INDEX
    assert 0 < int(ignored.sum()) < len(targets)
    assert not losses[ignored].any()
    assert losses[~ignored].all()
    assert hidden.grad is not None
    assert not hidden.grad[ignored].any()
    assert hidden.grad[~ignored].any(dim=1).all()


def test_losses_without_gradients_are_the_same() -> None:
    import torch

    hidden, head, targets = make_inputs(CHUNK_TOKENS + 5, 0.2)
    with_gradients = token_losses(hidden, head, targets)
    with torch.no_grad():
        without = token_losses(hidden, head, targets)
    assert with_gradients.requires_grad
    assert not without.requires_grad
    assert torch.equal(with_gradients.detach(), without)


def test_losses_of_half_precision_states_are_computed_in_full_precision() -> None:
    import torch

    hidden, head, targets = make_inputs(CHUNK_TOKENS)
    states, half = hidden.detach().bfloat16(), head.bfloat16()
    losses = token_losses(states, half, targets)
    assert losses.dtype == torch.float32
    exact = torch.nn.functional.cross_entropy(half(states).double(), targets, reduction="none")
    torch.testing.assert_close(losses.double(), exact, rtol=1e-5, atol=1e-5)


def test_logits_beyond_the_range_of_half_precision_stay_finite() -> None:
    import torch

    hidden, head, targets = make_inputs(20)
    with torch.no_grad():
        head.weight.mul_(1e4)
    losses = token_losses(hidden, head, targets)
    losses.sum().backward()
    assert torch.isfinite(losses).all()
    assert hidden.grad is not None
    assert torch.isfinite(hidden.grad).all()


def test_the_gradient_under_a_frozen_head_is_as_accurate_in_half_precision() -> None:
    import torch

    results = []
    for frozen in (False, True):
        hidden, head, targets = make_inputs(CHUNK_TOKENS + 7, 0.2, frozen=frozen)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses = token_losses(hidden, head, targets)
        (losses.sum() / 1021).backward()  # a number that bf16 rounds
        results.append((losses.detach(), hidden.grad))
    assert torch.equal(results[0][0], results[1][0])
    hidden, head, targets = make_inputs(CHUNK_TOKENS + 7, 0.2)
    (plain_losses(hidden, head, targets).sum() / 1021).backward()
    errors = [float((grad - hidden.grad).norm() / hidden.grad.norm()) for _, grad in results]
    assert errors[1] <= 1.1 * errors[0] < 0.02


@pytest.mark.parametrize("frozen", [False, True])
def test_the_logits_of_a_whole_batch_never_exist_at_once(frozen: bool) -> None:
    import torch

    class Head(torch.nn.Linear):
        """Records the largest number of states it received."""

        largest = 0

        def forward(self, states: Any) -> Any:
            self.largest = max(self.largest, len(states))
            return super().forward(states)

    hidden, _, targets = make_inputs(5 * CHUNK_TOKENS)
    head = Head(WIDTH, VOCABULARY).requires_grad_(not frozen)
    token_losses(hidden, head, targets).sum().backward()
    assert head.largest == CHUNK_TOKENS
