"""Head: from the product of hidden states and output layer to logits, in one place for every path to a loss.

Only the Triton kernels repeat these formulas, as device code; they are tested against this.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dgpo.fields import check_value


@dataclass(frozen=True, kw_only=True)
class Head:
    """What follows the product of hidden states and output layer::

        raw = product + bias
        z = softcap · tanh(scale · raw / softcap) / temperature        scale · raw / temperature without a softcap

    Attributes:
        scale: > 0; of the model.
        softcap: > 0; of the model, or None for no cap.
        temperature: > 0; of the sampler.
        bias: [V]; None where there is none, or the product has it already.

    Raises:
        ValueError: a number outside its range.
    """

    scale: float = 1.0
    softcap: float | None = None
    temperature: float = 1.0
    bias: Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("scale", "temperature", "softcap"):
            if name != "softcap" or self.softcap is not None:
                check_value(name, getattr(self, name), "(0, inf)")

    # with the scale in these two, z = cap · tanh(raw / cap) / divisor: one pass less over the logits

    @property
    def cap(self) -> float | None:
        """softcap / scale."""
        return None if self.softcap is None else self.softcap / self.scale

    @property
    def divisor(self) -> float:
        """temperature / scale."""
        return self.temperature / self.scale

    @property
    def plain(self) -> bool:
        """True where z is the product itself."""
        return self.bias is None and self.softcap is None and self.divisor == 1

    @property
    def pulls_nothing(self) -> bool:
        """True where d loss/d product is d loss/dz: only a bias is added to the product."""
        return self.softcap is None and self.divisor == 1

    def logits(self, product: Tensor, *, out: Tensor | None = None) -> Tensor:
        """z [..., V] from the product [..., V], with its gradient; into `out`, which may be the product itself."""
        z = product
        if self.bias is not None:
            z = torch.add(z, self.bias, out=out)
        if self.cap is not None:
            z = torch.div(z, self.cap, out=out)
            z = torch.mul(torch.tanh(z, out=out), self.cap, out=out)
        return z if self.divisor == 1 else torch.div(z, self.divisor, out=out)

    def pull_back_(self, gradient: Tensor, z: Tensor) -> None:
        """d loss/d product in the place of d loss/dz, where z has these values; with a softcap z is overwritten."""
        if self.cap is not None:
            # (1 - tanh²) of the cap, with tanh from z itself: the product is overwritten by now
            z.mul_(self.divisor / self.cap).square_()  # tanh²
            gradient.addcmul_(gradient, z, value=-1)
        if self.divisor != 1:
            gradient.div_(self.divisor)

    def scores(self, product: Tensor, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        """log-probs of the tokens [...] and entropies, in nats, of products [..., V], with all logits at once."""
        logp = torch.log_softmax(self.logits(product), -1)
        p = logp.exp()
        # a logit of -inf: 0 · -inf is NaN
        entropy = -(p * torch.where(p > 0, logp, 0.0)).sum(-1)
        return logp.gather(-1, token_ids.unsqueeze(-1)).squeeze(-1), entropy


PLAIN = Head()
