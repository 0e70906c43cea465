"""The loss: hand-computed values, what may not change it, and finite gradients at the edges."""

from __future__ import annotations

import math

import pytest
import torch

from model.loss import Heads, TaskHead, probabilities, ranking_loss

CLICK, BUY = TaskHead("click"), TaskHead("buy", loss_weight=0.5)
PLAIN = Heads([CLICK, BUY])
FUNNEL = Heads([CLICK, TaskHead("buy_if_clicked"), TaskHead("buy", 2.0, ("click", "buy_if_clicked"))])


def tensor(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_weighted_mean_per_task_by_hand() -> None:
    logits, labels = tensor([0.0, 1.0], [2.0, -1.0]), tensor([1, 0], [0, 1])
    weights = tensor([1, 2], [3, 0])
    click = (1 * -math.log(0.5) + 3 * -math.log(1 - sigmoid(2))) / 4
    buy = 0.5 * (2 * -math.log(1 - sigmoid(1))) / 2
    loss = ranking_loss(logits, labels, weights, torch.tensor([4.0, 2.0], dtype=torch.float64), PLAIN)
    assert loss.item() == pytest.approx(click + buy, rel=1e-12)


def test_normalizers_make_any_cut_of_a_batch_add_up() -> None:
    torch.manual_seed(0)
    logits, labels, weights = torch.randn(9, 2).double(), torch.rand(9, 2).round().double(), torch.rand(9, 2).double()
    total = weights.sum(0)
    whole = ranking_loss(logits, labels, weights, total, PLAIN)
    for cut in ([3, 6], [1, 8], [9, 0], [2, 3, 4]):
        pieces = zip(logits.split(cut), labels.split(cut), weights.split(cut), strict=True)
        shares = [ranking_loss(x, y, w, total / len(cut), PLAIN) for x, y, w in pieces]
        torch.testing.assert_close(torch.stack(shares).mean(), whole, rtol=1e-12, atol=0)


@pytest.mark.parametrize("heads", [PLAIN, FUNNEL])
def test_positions_of_weight_zero_change_nothing_whatever_they_hold(heads: Heads) -> None:
    torch.manual_seed(1)
    width = len(heads)
    logits, labels, weights = torch.randn(4, width), torch.rand(4, width).round(), torch.rand(4, width) + 0.1
    plain = ranking_loss(logits, labels, weights, weights.sum(0), heads)
    nan = float("nan")
    filler = torch.tensor([nan, math.inf, -math.inf])[:width].repeat(2, 1)
    more = torch.cat([logits, filler]).requires_grad_()
    with_fillers = ranking_loss(
        more, torch.cat([labels, filler]), torch.cat([weights, torch.zeros(2, width)]), weights.sum(0), heads
    )
    assert torch.equal(with_fillers, plain)
    with_fillers.backward()
    assert more.grad is not None
    assert torch.equal(more.grad[4:], torch.zeros(2, width))


def test_a_null_label_of_one_task_leaves_the_others_alone() -> None:
    logits, labels = tensor([0.3, 1.0, 0], [2.0, -1.0, 0]).requires_grad_(), tensor([1, 0, 0], [0, 1, 1])
    weights = tensor([1, 0, 0], [0, 1, 0])
    ranking_loss(logits, labels, weights, weights.sum(0), FUNNEL).backward()
    expected = tensor([sigmoid(0.3) - 1, 0, 0], [0, sigmoid(-1) - 1, 0])
    torch.testing.assert_close(logits.grad, expected)


@pytest.mark.parametrize("value", [0.0, float("nan"), 300.0])
def test_a_task_of_normalizer_zero_is_left_out(value: float) -> None:
    logits = torch.tensor([[1.0, value], [0.0, value]], requires_grad=True)
    weights = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    loss = ranking_loss(logits, torch.ones(2, 2), weights, weights.sum(0), PLAIN)
    loss.backward()
    assert logits.grad is not None
    assert loss.item() == pytest.approx((-math.log(sigmoid(1)) - math.log(0.5)) / 2, rel=1e-6)
    assert torch.equal(logits.grad[:, 1], torch.zeros(2))


def test_nothing_to_learn_from_gives_zero_loss_and_zero_gradient() -> None:
    logits = torch.randn(3, 2, requires_grad=True)
    loss = ranking_loss(logits, torch.ones(3, 2), torch.zeros(3, 2), torch.zeros(2), PLAIN)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros(3, 2))  # type: ignore[arg-type]
    empty = torch.zeros(0, 2, requires_grad=True)
    assert ranking_loss(empty, empty.detach(), empty.detach(), torch.ones(2), PLAIN).item() == 0


def test_product_tasks_are_scored_on_the_product() -> None:
    logits, labels = tensor([0.4, -0.7, 9.0]), tensor([1, 0, 0])
    weights, product = tensor([0, 0, 1]), sigmoid(0.4) * sigmoid(-0.7)
    loss = ranking_loss(logits, labels, weights, torch.ones(3).double(), FUNNEL)
    assert loss.item() == pytest.approx(-2 * math.log(1 - product), rel=1e-12)
    shown = probabilities(logits, FUNNEL)
    torch.testing.assert_close(shown, tensor([sigmoid(0.4), sigmoid(-0.7), product]))


@pytest.mark.parametrize("z", [-120.0, -30.0, 30.0, 120.0])
@pytest.mark.parametrize("label", [0.0, 1.0])
def test_far_logits_keep_loss_and_gradient_finite(z: float, label: float) -> None:
    logits = torch.tensor([[z, abs(z), 0.0]], requires_grad=True)
    labels, weights = torch.full((1, 3), label), torch.ones(1, 3)
    loss = ranking_loss(logits, labels, weights, torch.ones(3), FUNNEL)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_gradient_of_plain_and_product_tasks() -> None:
    torch.manual_seed(2)
    logits = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    labels, weights = torch.rand(5, 3).round().double(), torch.rand(5, 3).double()
    assert torch.autograd.gradcheck(lambda x: ranking_loss(x, labels, weights, weights.sum(0), FUNNEL), [logits])


def test_factors_must_be_plain_tasks() -> None:
    with pytest.raises(ValueError, match="'lost' → factors are tasks"):
        Heads([CLICK, TaskHead("both", 1.0, ("click", "lost"))])


@pytest.mark.parametrize("heads", [PLAIN, FUNNEL])
def test_an_offset_moves_the_logit_of_a_task_s_probability(heads: Heads) -> None:
    torch.manual_seed(2)
    width = len(heads)
    logits = torch.randn(6, width, dtype=torch.float64, requires_grad=True)
    labels, weights, offsets = (
        torch.rand(6, width).round().double(),
        torch.rand(6, width).double(),
        torch.randn(6, width),
    )
    loss = ranking_loss(logits, labels, weights, weights.sum(0), heads, offsets.double())
    odds = torch.logit(probabilities(logits, heads)) + offsets
    scale = torch.tensor([head.loss_weight for head in heads]) / weights.sum(0)
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(odds, labels, reduction="none")
    expected = (scale * weights * entropy).sum()
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    for ours, theirs in zip(torch.autograd.grad(loss, logits), torch.autograd.grad(expected, logits), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-12)
