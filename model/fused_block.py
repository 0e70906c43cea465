"""The two halves of a block, either side of its attention, with backward passes of their own (model/block.py has the
same in plain modules, which the tests hold these to).

What they spare beside the modules: the norm's gain is folded into the matrices that read the normed tokens, so that a
norm is one factor a token; one matrix product for queries, keys, values and gate; gradients are written side by side
into one buffer and meet in the accumulator of one product, where autograd would add tensors up; the residual stream's
gradient is added where the norm's is made. Kept for backward are x̂ (never x itself), the gate, the SwiGLU's two inputs
and silu of one; the product of the two is made again.

Dtypes: the residual stream stays as it comes (float32: norms and sums are as fast there as in bfloat16, and exact
enough); `dtype` is that of the products and of everything between them. Weights come as they are kept and are cast
here; their gradients leave in the weights' dtype.

Shape suffixes: A tokens taken in · Q tokens put out · D width · H heads · h head width · p = h / 2 pairs · I hidden
width of the SwiGLU · W columns of several matrices side by side.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from model.rope import rotate_

Tensor = torch.Tensor
NORM_EPS = 1e-6


def _factor(x_AD: Tensor) -> Tensor:
    """[A, 1] of RMSNorm: 1 / √(mean x² + ε)."""
    norm_A1 = torch.linalg.vector_norm(x_AD, dim=1, keepdim=True)
    factor_A1: Tensor = norm_A1.square_().div_(x_AD.shape[1]).add_(NORM_EPS).rsqrt_()
    return factor_A1


def _norm_backward(grad_AD: Tensor, unit_AD: Tensor, factor_A1: Tensor, residual_AD: Tensor | None) -> Tensor:
    """From the gradient of x̂ = x · factor to that of x, plus what comes down the residual stream."""
    grad_AD, unit_AD = grad_AD.to(factor_A1.dtype), unit_AD.to(factor_A1.dtype)
    along_A1 = (grad_AD * unit_AD).sum(dim=1, keepdim=True).div_(-unit_AD.shape[1])
    grad_AD = torch.addcmul(grad_AD, unit_AD, along_A1).mul_(factor_A1)
    return grad_AD if residual_AD is None else grad_AD.add_(residual_AD)


def _folded(weight_WD: Tensor, gain_D: Tensor, dtype: torch.dtype) -> Tensor:
    return (weight_WD * gain_D).to(dtype)


def _unfolded(grad_WD: Tensor, weight_WD: Tensor, gain_D: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of weight and gain from that of their product."""
    grad_WD = grad_WD.to(weight_WD.dtype)
    return grad_WD * gain_D, (grad_WD * weight_WD).sum(dim=0)


class BeforeAttention(torch.autograd.Function):
    """(x_AD, gain, W_q, W_kv, W_g or None, rotations, queries_A, heads, dtype) → x_QD, q_QHh, k_AHh, v_AHh, and the
    gate before its sigmoid [Q, D] (empty without a gate)."""

    @staticmethod
    def forward(
        ctx: Any,
        x_AD: Tensor,
        gain_D: Tensor,
        query_DD: Tensor,
        key_value_WD: Tensor,
        gate_DD: Tensor | None,
        rotation_A: Tensor,
        rotation_Q: Tensor,
        queries_A: Tensor | None,
        num_heads: int,
        dtype: torch.dtype,
    ) -> tuple[Tensor, ...]:
        dim = x_AD.shape[1]
        factor_A1 = _factor(x_AD)
        unit_AD = (x_AD * factor_A1).to(dtype)
        of_queries = [query_DD] if gate_DD is None else [query_DD, gate_DD]
        if queries_A is None:  # every token is asked everything: one product
            x_QD, units = x_AD.view_as(x_AD), [unit_AD]
            weights = [torch.cat([*of_queries, key_value_WD])]
        else:
            x_QD, units = x_AD.index_select(0, queries_A), [unit_AD.index_select(0, queries_A), unit_AD]
            weights = [torch.cat(of_queries), key_value_WD]
        casts = [_folded(weight_WD, gain_D, dtype) for weight_WD in weights]
        made = [unit @ cast.t() for unit, cast in zip(units, casts, strict=True)]
        own_QW, key_value_AW = (
            made if len(made) > 1 else made[0].split_with_sizes([dim * len(of_queries), 2 * dim], dim=1)
        )
        query_QHh = rotate_(_heads(own_QW[:, :dim], num_heads), rotation_Q)
        key_AHh = rotate_(_heads(key_value_AW[:, :dim], num_heads), rotation_A)
        ctx.save_for_backward(gain_D, unit_AD, factor_A1, rotation_A, rotation_Q, queries_A, *weights, *casts)
        ctx.gated = gate_DD is not None
        return x_QD, query_QHh, key_AHh, _heads(key_value_AW[:, dim:], num_heads), own_QW[:, dim:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        residual_QD, query_QHh, key_AHh, value_AHh, gate_QD = grads
        gain_D, unit_AD, factor_A1, rotation_A, rotation_Q, queries_A, *matrices = ctx.saved_tensors
        own = [_unrotated(query_QHh, rotation_Q), gate_QD]
        key_value = [_unrotated(key_AHh, rotation_A), value_AHh.flatten(1)]
        if queries_A is None:
            weight_WD, cast_WD = matrices
            made_AW = torch.cat([*own, *key_value], dim=1)
            x_grad = _norm_backward(made_AW @ cast_WD, unit_AD, factor_A1, residual_QD)
            grad_WD, gain_grad = _unfolded(made_AW.t() @ unit_AD, weight_WD, gain_D)
        else:
            own_WD, key_value_WD, own_cast, key_value_cast = matrices
            own_QW, key_value_AW = torch.cat(own, dim=1), torch.cat(key_value, dim=1)
            grad_AD = (key_value_AW @ key_value_cast).to(residual_QD.dtype)
            grad_AD.index_add_(0, queries_A, (own_QW @ own_cast).to(residual_QD.dtype))
            x_grad = _norm_backward(grad_AD, unit_AD, factor_A1, None).index_add_(0, queries_A, residual_QD)
            own_grad, own_gain = _unfolded(own_QW.t() @ unit_AD.index_select(0, queries_A), own_WD, gain_D)
            key_value_grad, key_value_gain = _unfolded(key_value_AW.t() @ unit_AD, key_value_WD, gain_D)
            grad_WD, gain_grad = torch.cat([own_grad, key_value_grad]), own_gain + key_value_gain
        dim = gain_D.shape[0]
        query_grad, *gate_grad, key_value_grad = grad_WD.split_with_sizes([*([dim] * (1 + ctx.gated)), 2 * dim])
        return (x_grad, gain_grad, query_grad, key_value_grad, gate_grad[0] if gate_grad else None, *(None,) * 5)


class AfterAttention(torch.autograd.Function):
    """(x_QD, mixed_QD, gate before its sigmoid [Q, D] or empty, W_o, gain, W_1|W_2, W_3, dropout masks) → x_QD.

    masks: what the two additions to the residual stream are multiplied by, [Q, D] each; None for none."""

    @staticmethod
    def forward(
        ctx: Any,
        x_QD: Tensor,
        mixed_QD: Tensor,
        gate_QD: Tensor,
        output_DD: Tensor,
        gain_D: Tensor,
        gate_and_up_WD: Tensor,
        down_DI: Tensor,
        mixed_mask_QD: Tensor | None,
        ffn_mask_QD: Tensor | None,
    ) -> Tensor:
        dtype, hidden = mixed_QD.dtype, down_DI.shape[1]
        output_cast, down_cast = output_DD.to(dtype), down_DI.to(dtype)
        gate_and_up_cast = _folded(gate_and_up_WD, gain_D, dtype)
        out_QD = mixed_QD @ output_cast.t()
        sigmoid_QD = torch.sigmoid(gate_QD) if gate_QD.shape[1] else gate_QD
        added_QD = _times(out_QD * sigmoid_QD if gate_QD.shape[1] else out_QD, mixed_mask_QD)
        x_QD = x_QD + added_QD
        factor_Q1 = _factor(x_QD)
        unit_QD = (x_QD * factor_Q1).to(dtype)
        both_QW = unit_QD @ gate_and_up_cast.t()
        silu_QI, up_QI = F.silu(both_QW[:, :hidden]), both_QW[:, hidden:]
        x_QD += _times((silu_QI * up_QI) @ down_cast.t(), ffn_mask_QD)  # its own: x before was only summed from
        ctx.save_for_backward(
            *(gain_D, gate_and_up_WD, output_cast, gate_and_up_cast, down_cast),
            *(mixed_QD, out_QD, sigmoid_QD, factor_Q1, unit_QD, both_QW, silu_QI, mixed_mask_QD, ffn_mask_QD),
        )
        ctx.kept = output_DD.dtype
        return x_QD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_QD: Tensor) -> tuple[Tensor | None, ...]:
        gain_D, gate_and_up_WD, output_cast, gate_and_up_cast, down_cast, *activations = ctx.saved_tensors
        mixed_QD, out_QD, sigmoid_QD, factor_Q1, unit_QD, both_QW, silu_QI, mixed_mask_QD, ffn_mask_QD = activations
        dtype, hidden = mixed_QD.dtype, silu_QI.shape[1]

        ffn_QD = _times(grad_QD.to(dtype), ffn_mask_QD)
        spare_QI = silu_QI * both_QW[:, hidden:]
        down_grad = (ffn_QD.t() @ spare_QI).to(ctx.kept)
        both_grad_QW = _swiglu_backward_(ffn_QD @ down_cast, both_QW, silu_QI, spare_QI)
        unit_grad_QD = both_grad_QW @ gate_and_up_cast
        gate_and_up_grad, gain_grad = _unfolded(both_grad_QW.t() @ unit_QD, gate_and_up_WD, gain_D)
        x_grad_QD = _norm_backward(unit_grad_QD, unit_QD, factor_Q1, grad_QD)

        added_QD = _times(x_grad_QD.to(dtype), mixed_mask_QD)
        gate_grad_QD, out_grad_QD = sigmoid_QD, added_QD
        if sigmoid_QD.shape[1]:
            gate_grad_QD = torch.ops.aten.sigmoid_backward(added_QD * out_QD, sigmoid_QD)
            out_grad_QD = added_QD * sigmoid_QD
        output_grad = (out_grad_QD.t() @ mixed_QD).to(ctx.kept)
        mixed_grad_QD = out_grad_QD @ output_cast
        return (
            *(x_grad_QD, mixed_grad_QD, gate_grad_QD, output_grad, gain_grad, gate_and_up_grad, down_grad),
            *(None, None),
        )


def _swiglu_backward_(grad_QI: Tensor, both_QW: Tensor, silu_QI: Tensor, spare_QI: Tensor) -> Tensor:
    """Gradient of the SwiGLU's two inputs, side by side, from that of silu(gate) ⊙ up. It takes the inputs' own place:
    fresh memory of their size costs more than all the arithmetic here. autograd refuses a second backward pass over
    what was overwritten."""
    gate_QI, up_QI = both_QW.chunk(2, dim=1)
    torch.mul(grad_QI, up_QI, out=spare_QI)
    torch.mul(grad_QI, silu_QI, out=up_QI)
    torch.ops.aten.silu_backward.grad_input(spare_QI, gate_QI, grad_input=gate_QI)
    return both_QW


def _heads(x_AD: Tensor, num_heads: int) -> Tensor:
    return x_AD.view(x_AD.shape[0], num_heads, x_AD.shape[1] // num_heads)


def _unrotated(grad_AHh: Tensor, rotation_A: Tensor) -> Tensor:
    return rotate_(grad_AHh.clone(), rotation_A.conj()).flatten(1)


def _times(x_QD: Tensor, mask_QD: Tensor | None) -> Tensor:
    return x_QD if mask_QD is None else x_QD * mask_QD
