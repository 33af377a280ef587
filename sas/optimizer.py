"""Which optimizer trains which weights: AdamW for all, or Muon for the matrices among them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

UPDATE_RMS = 0.2
"""Root mean square of a Muon update at learning rate 1, about that of AdamW (Liu et al. 2025)."""


class Muon(torch.optim.AdamW):
    """AdamW, but groups that say `orthogonal: True` take Muon's steps (Jordan et al. 2024): momentum, made a matrix without short directions.

    A convolution's weight (out, in, k, k) counts as a matrix (out, in * k * k); `torch.optim.Muon` takes no convolutions. Updates have
    the same root mean square whatever the shape, so that learning rate and weight decay mean about what they mean to AdamW.
    """

    momentum = 0.95

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; the gradients of the orthogonal groups are used up, that is None afterwards."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            alike: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
            for weight in group["params"] if group.get("orthogonal") else ():
                if weight.grad is not None:
                    matrix = self._ahead(weight, weight.grad)
                    alike.setdefault(tuple(matrix.shape), []).append((weight, matrix))  # type: ignore[arg-type]
                    weight.grad = None
            for (
                shape,
                pairs,
            ) in alike.items():  # of one shape at a time, since many small products take longer than a large one
                matrices = torch.stack([matrix for _, matrix in pairs])
                updates = orthogonalized(matrices.to(torch.bfloat16) if group.get("half") else matrices)
                updates = updates.to(matrices.dtype) * (UPDATE_RMS * max(shape) ** 0.5)
                for (weight, _), update in zip(pairs, updates, strict=True):
                    weight.mul_(1 - group["lr"] * group["weight_decay"])
                    weight.sub_(update.reshape(weight.shape), alpha=group["lr"])
        super().step()
        return loss

    def _ahead(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """The momentum after this gradient, a step ahead (Nesterov's), as a matrix."""
        state = self.state[weight]
        if not state:
            state["step"] = torch.tensor(0.0)  # AdamW looks for it in every state that it loads
            state["momentum"] = torch.zeros_like(weight)
        state["step"] += 1
        average = state["momentum"].lerp_(gradient, 1 - self.momentum)
        return gradient.lerp(average, self.momentum).reshape(len(weight), -1)


def orthogonalized(matrices: Tensor, *, rounds: int = 5) -> Tensor:
    """About U V^T of the singular value decomposition U S V^T of float matrices (N, m, n): singular values between about 0.7 and 1.2.

    The quintic Newton-Schulz iteration with the coefficients of Jordan et al. 2024 (Muon), in the matrices' own precision. Zero stays zero.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT.contiguous() if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(rounds):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x.mT if tall else x


def make_optimizer(
    model: nn.Module,
    kind: Literal["adamw", "muon"],
    *,
    learning_rate: float,
    weight_decay: float,
    encoder_rate: float,
    half: bool = False,
) -> torch.optim.Optimizer:
    """Optimizer of a network's weights. Its groups have a "factor" of the learning rate; an image encoder with factor 0 is frozen, the running
    statistics of its norms included. half: Muon's matrix products in bfloat16."""
    encoder = getattr(model, "image_encoder", None)
    if encoder is not None and encoder_rate == 0:
        encoder.requires_grad_(False).eval()
    own = {id(p) for p in encoder.parameters()} if encoder is not None and encoder_rate != 1 else set()
    groups: dict[tuple[bool, bool], dict[str, Any]] = {}
    for parameter in model.parameters():
        of_encoder, orthogonal = id(parameter) in own, kind == "muon" and _is_matrix(parameter)
        group = {
            "params": [], "factor": encoder_rate if of_encoder else 1.0, "orthogonal": orthogonal, "half": half,
        }  # fmt: skip
        groups.setdefault((of_encoder, orthogonal), group)["params"].append(parameter)
    optimizer = Muon if kind == "muon" else torch.optim.AdamW
    return optimizer([groups[key] for key in sorted(groups)], lr=learning_rate, weight_decay=weight_decay)


def _is_matrix(parameter: Tensor) -> bool:
    """Whether a weight mixes channels, many with many: not a bias, a gain, a filter of single channels, or an output of fewer than 8."""
    return parameter.ndim > 1 and parameter.shape[1] > 1 and len(parameter) >= 8 and parameter[0].numel() >= 16
