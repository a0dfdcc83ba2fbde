"""One function per adapter family: delta = merged - ORIGINAL base, as plain algebra.

Every function works in its caller's dtype. Letters: d_out d_in weight shape, r rank, s scale,
k blocks of size b, n butterfly factors.
"""

import math

import torch
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor

Weight = Float[Tensor, "d_out d_in"]
FactorA = Float[Tensor, "r d_in"]
FactorB = Float[Tensor, "d_out r"]
Blocks = Float[Tensor, "k b b"]


def lora_delta(A: FactorA, B: FactorB, scale: float) -> Weight:
    """dW = s B A, with s = alpha / r, or alpha / sqrt(r) for rsLoRA.

    Hu et al. 2021 (arXiv 2106.09685); rsLoRA: Kalajdzievski 2023 (arXiv 2312.03732).
    """
    return scale * (B @ A)


def dora_delta(
    A: FactorA, B: FactorB, scale: float, magnitude: Float[Tensor, " d_out"], W: Weight
) -> Weight:
    """dW = m V / |V| - W, where V = W + s B A and |V| is the norm of each row (of each output).

    A zero row of V has no direction and gives NaN. Liu et al. 2024 (arXiv 2402.09353).
    """
    V = W + lora_delta(A, B, scale)
    return (magnitude / V.norm(dim=1))[:, None] * V - W


def pissa_factors(W: Weight, r: int, scale: float) -> tuple[FactorA, FactorB]:
    """A0 = sqrt(S/s) Vt, B0 = U sqrt(S/s): s B0 A0 is the top-r part of W = U S Vt.

    Meng, Wang & Zhang 2024 (arXiv 2404.02948).
    """
    U, S, Vt = torch.linalg.svd(W, full_matrices=False)
    root = (S[:r] / scale).sqrt()
    return root[:, None] * Vt[:r], U[:, :r] * root


def pissa_delta(A: FactorA, B: FactorB, scale: float, A0: FactorA, B0: FactorB) -> Weight:
    """dW = s (B A - B0 A0): the adapter sits on W - s B0 A0, with A0, B0 from `pissa_factors`.

    Meng, Wang & Zhang 2024 (arXiv 2404.02948).
    """
    return lora_delta(A, B, scale) - lora_delta(A0, B0, scale)


def delora_delta(
    A: FactorA, B: FactorB, lam: Float[Tensor, "1"], w_norm: Float[Tensor, " d_in"]
) -> Weight:
    """dW = (lambda/r) sum_i b_i a_i / (|b_i| |a_i|) diag(w), w the column norms of W at init.

    a_i are rows of A, b_i columns of B; a norm below 1e-4 counts as 1e-4, so B = 0 gives 0.
    Bini, Girrbach & Akata 2025 (arXiv 2503.18225), with PEFT's w per column for the paper's |W|.
    """
    unit_A = A / A.norm(dim=1, keepdim=True).clamp(min=1e-4)
    unit_B = B / B.norm(dim=0, keepdim=True).clamp(min=1e-4)
    return lam / len(A) * (unit_B @ unit_A) * w_norm


def oft_delta(
    theta: Float[Tensor, "k p"], W: Weight, terms: int | None = None, eps: float | None = None
) -> Weight:
    """dW = W R^T - W, R = diag(R_1 .. R_k), R_i = cayley(Q_i), Q_i skew, its upper part theta_i.

    p = b(b-1)/2 and k b = d_in, or k = 1 for a shared block. `terms` takes R_i by `cayley_neumann`;
    `eps` first shrinks every |Q_i| above eps/sqrt(k) to it (constrained OFT).
    Qiu et al. 2023 (arXiv 2306.07280).
    """
    b = block_size(theta.shape[1])
    Q = theta.new_zeros(len(theta), b, b)
    rows, cols = torch.triu_indices(b, b, offset=1, device=theta.device)
    Q[:, rows, cols] = theta
    Q = Q - Q.mT
    if eps is not None:
        norm = Q.flatten(1).norm(dim=1)[:, None, None]
        Q = Q * (eps / math.sqrt(len(Q)) / norm).clamp(max=1.0)
    return rotate(W, cayley(Q) if terms is None else cayley_neumann(Q, terms)) - W


def boft_delta(
    theta: Float[Tensor, "n k b b"], magnitude: Float[Tensor, "d_out 1"], W: Weight
) -> Weight:
    """dW = m (W M_1^T .. M_n^T) - W, M_i = P_i diag(R_i1 .. R_ik) P_i^T, m on rows, not on biases.

    R_ij = cayley(skew part of theta_ij), k b = d_in, P_i from `butterfly`, P_1 = I.
    Liu et al. 2023 (arXiv 2311.06243).
    """
    V = W
    for level, blocks in enumerate(theta):
        order = butterfly(W.shape[1], blocks.shape[-1], level).to(W.device)
        V = rotate(V[:, order.argsort()], cayley((blocks - blocks.mT) / 2))[:, order]
    return magnitude * V - W


def ia3_delta(gate: Float[Tensor, "#d_out #d_in"], W: Weight) -> Weight:
    """dW = (l - 1) * W, l of shape [d_out, 1] on rows, or [1, d_in] on columns (feedforward).

    A row gate scales the bias too. Liu et al. 2022 (arXiv 2205.05638).
    """
    return (gate - 1) * W


def cayley(Q: Blocks) -> Blocks:
    """R = (I - Q)(I + Q)^-1, orthogonal for skew Q (the two factors commute)."""
    eye = torch.eye(Q.shape[-1], dtype=Q.dtype, device=Q.device)
    return torch.linalg.solve(eye + Q, eye - Q)


def cayley_neumann(Q: Blocks, terms: int) -> Blocks:
    """R = I + 2 (Q + .. + Q^(t-2)) + Q^(t-1): nearly (I + Q)(I - Q)^-1, the inverse of `cayley`.

    t = `terms` from 4 up; PEFT reads 3 as 4, 2 as I + 2Q, less as I. Qiu et al. 2025 (2506.19847).
    """
    R = power = torch.eye(Q.shape[-1], dtype=Q.dtype, device=Q.device).expand_as(Q)
    weights = [2] * (max(terms, 4) - 2) + [1] if terms > 2 else [2] * (terms - 1)
    for weight in weights:
        power = power @ Q
        R = R + weight * power
    return R


def rotate(W: Weight, R: Blocks) -> Weight:
    """W diag(R_1 .. R_k)^T, block by block; one R with b < d_in is shared by all blocks."""
    blocks = rearrange(W, "d_out (k b) -> d_out k b", b=R.shape[-1])
    R = R.expand(blocks.shape[1], -1, -1)
    return einsum(blocks, R, "d_out k b, k c b -> d_out k c").flatten(1)


def block_size(p: int) -> int:
    """The largest b with b(b-1)/2 <= p."""
    return (1 + math.isqrt(1 + 8 * p)) // 2


def butterfly(d_in: int, b: int, level: int) -> Int[Tensor, " d_in"]:
    """Each run of b 2^level inputs as half-blocks 0 2 4 .. then 1 3 5 ..; level 0 moves nothing."""
    order = torch.arange(d_in)
    if level == 0:  # also the only level an odd block size can have
        return order
    halves = "(run pair two half) -> (run two pair half)"
    return rearrange(order, halves, pair=2**level, two=2, half=b // 2)
