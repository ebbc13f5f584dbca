"""S small transformers side by side: every parameter has a leading axis of members, and every product is batched.

The architecture is GPT-2's with ReLU, and the parameters have the names and layouts of `transformers.GPT2LMHeadModel`,
so that `member` is a state dict for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Shape:
    """Sizes of one member and of its sequences.

    Attributes:
        vocabulary, width, layers, heads: V, d, number of blocks and of attention heads; the hidden layer is 4 d wide.
        prompt, response: L and T, the tokens of every prompt and the most tokens of a response.
    """

    vocabulary: int
    width: int
    layers: int
    heads: int
    prompt: int
    response: int

    @cached_property
    def parameters(self) -> dict[str, tuple[int, ...]]:
        """Name in GPT-2's state dict -> shape."""
        d = self.width
        shapes: dict[str, tuple[int, ...]] = {
            "transformer.wte.weight": (self.vocabulary, d),
            "transformer.wpe.weight": (self.prompt + self.response, d),
        }
        for layer in range(self.layers):
            block = f"transformer.h.{layer}."
            shapes |= {
                block + "ln_1.weight": (d,),
                block + "ln_1.bias": (d,),
                block + "attn.c_attn.weight": (d, 3 * d),
                block + "attn.c_attn.bias": (3 * d,),
                block + "attn.c_proj.weight": (d, d),
                block + "attn.c_proj.bias": (d,),
                block + "ln_2.weight": (d,),
                block + "ln_2.bias": (d,),
                block + "mlp.c_fc.weight": (d, 4 * d),
                block + "mlp.c_fc.bias": (4 * d,),
                block + "mlp.c_proj.weight": (4 * d, d),
                block + "mlp.c_proj.bias": (d,),
            }
        return shapes | {"transformer.ln_f.weight": (d,), "transformer.ln_f.bias": (d,)}

    @cached_property
    def size(self) -> int:
        """Parameters of one member."""
        return sum(math.prod(shape) for shape in self.parameters.values())

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """The parameters [S, ...] as views of `flat` [S, size]."""
        found, start = {}, 0
        for name, shape in self.parameters.items():
            stop = start + math.prod(shape)
            found[name] = flat[:, start:stop].view(len(flat), *shape)
            start = stop
        return found

    def member(self, flat: Tensor, index: int) -> dict[str, Tensor]:
        """State dict of one member for `GPT2LMHeadModel`, tied output layer included."""
        state = {name: value[index] for name, value in self.views(flat).items()}
        return state | {"lm_head.weight": state["transformer.wte.weight"]}

    def initial(self, seeds: list[int]) -> Tensor:
        """[S, size] as GPT-2 initialises: normal with 0.02, residual projections with 0.02/√(2·layers), norms 1."""
        flat = torch.zeros(len(seeds), self.size)
        for row, seed in enumerate(seeds):
            generator = torch.Generator().manual_seed(seed)
            for name, value in self.views(flat[row : row + 1]).items():
                if name.endswith("bias"):
                    continue
                if ".ln_" in name:
                    value.fill_(1)
                else:
                    std = 0.02 / math.sqrt(2 * self.layers) if name.endswith("c_proj.weight") else 0.02
                    value.normal_(0, std, generator=generator)
        return flat


def logits(shape: Shape, parameters: dict[str, Tensor], prompts: Tensor, responses: Tensor) -> Tensor:
    """Logits of every response token.

    A prompt is processed once for its G responses: its tokens and those of all its responses are one sequence, in which
    a response sees the prompt and itself.

    Args:
        shape: sizes.
        parameters: `Shape.views`.
        prompts: [S, P, L].
        responses: [S, P, G, T].

    Returns:
        [S, P, G, T, V].
    """
    S, P, G, T = responses.shape
    L, U, d = shape.prompt, T - 1, shape.width
    n = L + G * U
    device = prompts.device
    positions = torch.cat([torch.arange(L), (L + torch.arange(U)).repeat(G)]).to(device)
    # the last token of a response is predicted and never read
    tokens = torch.cat([prompts, responses[..., :U].flatten(2)], 2).flatten(1)
    x = _embed(parameters["transformer.wte.weight"], tokens).view(S, P, n, d)
    x = (x + parameters["transformer.wpe.weight"][:, None, positions]).view(S, P * n, d)
    bias = _visible(L, G, U, x)
    for layer in range(shape.layers):
        q, k, v = _qkv(shape, parameters, layer, x, P * n)
        # [S·P·heads, n, d/heads]
        q, k, v = (
            t.view(S, P, n, shape.heads, -1).transpose(2, 3).reshape(S * P * shape.heads, n, -1) for t in (q, k, v)
        )
        mixed = _attend(q, k, v, bias).view(S, P, shape.heads, n, -1).transpose(2, 3).reshape(S, P * n, d)
        x = _after_attention(parameters, layer, x, mixed)
    x = x.view(S, P, n, d)
    first = x[:, :, L - 1 : L].unsqueeze(2).expand(S, P, G, 1, d)
    hidden = torch.cat([first, x[:, :, L:].view(S, P, G, U, d)], 3)
    return _head(parameters, hidden.reshape(S, P * G * T, d)).view(S, P, G, T, -1)


@torch.no_grad()
def sample(
    shape: Shape, parameters: dict[str, Tensor], prompts: Tensor, uniform: Tensor, end: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Responses at temperature 1 by inversion of the cumulative distribution, with preallocated keys and values.

    Args:
        shape: sizes.
        parameters: `Shape.views`.
        prompts: [S, P, L].
        uniform: [S, P, G, T] in [0, 1): token t of a response is a function of the policy and of `uniform[..., t]`.
        end: the token that ends a response; what follows it is `end` too.

    Returns:
        Responses [S, P, G, T]; log-probs of their tokens in the dtype of the parameters; bool mask of the tokens up to
        and including the first `end`.
    """
    S, P, G, T = uniform.shape
    L, d, heads = shape.prompt, shape.width, shape.heads
    size = d // heads
    N = P * G
    x = _embed(parameters["transformer.wte.weight"], prompts.flatten(1)).view(S, P, L, d)
    x = (x + parameters["transformer.wpe.weight"][:, None, :L]).view(S, P * L, d)
    bias = _visible(L, 0, 0, x)
    # of the prompts [layers][S·P·heads, L, size], of the responses [layers, 2, S, N, heads, T, size]
    of_prompt = []
    cache = x.new_zeros(shape.layers, 2, S, N, heads, T, size)
    for layer in range(shape.layers):
        q, k, v = _qkv(shape, parameters, layer, x, P * L)
        q, k, v = (t.view(S, P, L, heads, size).transpose(2, 3).reshape(S * P * heads, L, size) for t in (q, k, v))
        of_prompt.append((k, v))
        mixed = _attend(q, k, v, bias).view(S, P, heads, L, size).transpose(2, 3).reshape(S, P * L, d)
        x = _after_attention(parameters, layer, x, mixed)
    hidden = x.view(S, P, L, d)[:, :, -1:].expand(S, P, G, d).reshape(S, N, d)

    tokens = torch.full((S, N, T), end, device=prompts.device)
    logprob = x.new_zeros(S, N, T)
    alive = torch.ones(S, N, dtype=torch.bool, device=prompts.device)
    mask = torch.zeros(S, N, T, dtype=torch.bool, device=prompts.device)
    # one token's draws are contiguous
    draws = uniform.view(S, N, T).permute(2, 0, 1).contiguous()
    for t in range(T):
        scores = _head(parameters, hidden).log_softmax(-1)
        cumulative = scores.exp().cumsum(-1)
        # the last sum may be below 1 by rounding
        drawn = torch.searchsorted(cumulative, draws[t, :, :, None], right=True).clamp(max=shape.vocabulary - 1)
        mask[..., t] = alive
        logprob[..., t] = scores.gather(-1, drawn).squeeze(-1)
        tokens[..., t] = torch.where(alive, drawn.squeeze(-1), end)
        alive = alive & (tokens[..., t] != end)
        if t == T - 1:
            break
        x = _embed(parameters["transformer.wte.weight"], tokens[..., t])
        x = x + parameters["transformer.wpe.weight"][:, None, L + t]
        for layer in range(shape.layers):
            q, k, v = _qkv(shape, parameters, layer, x, N)
            cache[layer, 0, :, :, :, t] = k.view(S, N, heads, size)
            cache[layer, 1, :, :, :, t] = v.view(S, N, heads, size)
            keys, values = cache[layer, :, :, :, :, : t + 1]
            key, value = of_prompt[layer]
            q = q.view(S, P, G, heads, size).transpose(2, 3).reshape(S * P * heads, G, size) * size**-0.5
            to_prompt = torch.bmm(q, key.transpose(1, 2)).view(S, P, heads, G, L)
            own = q.view(S, P, heads, G, size).transpose(2, 3).reshape(S, N, heads, 1, size)
            to_response = (own * keys).sum(-1).view(S, P, G, heads, t + 1).transpose(2, 3)
            attention = torch.cat([to_prompt, to_response], -1).softmax(-1)
            mixed = torch.bmm(attention[..., :L].reshape(S * P * heads, G, L), value)
            mixed = mixed.view(S, P, heads, G, size).transpose(2, 3).reshape(S, N, heads, size)
            share = attention[..., L:].transpose(2, 3).reshape(S, N, heads, t + 1, 1)
            mixed = mixed + (share * values).sum(-2)
            x = _after_attention(parameters, layer, x, mixed.view(S, N, d))
        hidden = x
    return tokens.view(S, P, G, T), logprob.view(S, P, G, T), mask.view(S, P, G, T)


def _embed(table: Tensor, tokens: Tensor) -> Tensor:
    """[S, V, d] at [S, N] -> [S, N, d]."""
    offsets = torch.arange(len(table), device=tokens.device).unsqueeze(1) * table.shape[1]
    return F.embedding(tokens + offsets, table.flatten(0, 1))


def _norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.addcmul(bias.unsqueeze(1), F.layer_norm(x, x.shape[-1:]), weight.unsqueeze(1))


def _linear(parameters: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return torch.baddbmm(parameters[name + ".bias"].unsqueeze(1), x, parameters[name + ".weight"])


def _qkv(shape: Shape, parameters: dict[str, Tensor], layer: int, x: Tensor, n: int) -> tuple[Tensor, ...]:
    block = f"transformer.h.{layer}."
    x = _norm(x, parameters[block + "ln_1.weight"], parameters[block + "ln_1.bias"])
    return _linear(parameters, block + "attn.c_attn", x).split(shape.width, -1)


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    return torch.bmm(torch.baddbmm(bias, q * q.shape[-1] ** -0.5, k.transpose(1, 2)).softmax(-1), v)


def _after_attention(parameters: dict[str, Tensor], layer: int, x: Tensor, mixed: Tensor) -> Tensor:
    block = f"transformer.h.{layer}."
    x = x + _linear(parameters, block + "attn.c_proj", mixed)
    hidden = _norm(x, parameters[block + "ln_2.weight"], parameters[block + "ln_2.bias"])
    return x + _linear(parameters, block + "mlp.c_proj", _linear(parameters, block + "mlp.c_fc", hidden).relu())


def _head(parameters: dict[str, Tensor], hidden: Tensor) -> Tensor:
    hidden = _norm(hidden, parameters["transformer.ln_f.weight"], parameters["transformer.ln_f.bias"])
    return torch.bmm(hidden, parameters["transformer.wte.weight"].transpose(1, 2))


def _visible(L: int, G: int, U: int, like: Tensor) -> Tensor:
    """[n, n] added to the scores: 0 where a token is visible, -inf elsewhere."""
    visible = torch.zeros(L + G * U, L + G * U, dtype=torch.bool)
    visible[:L, :L] = torch.ones(L, L).tril()
    visible[L:, :L] = True
    if U:
        visible[L:, L:] = torch.block_diag(*[torch.ones(U, U).tril()] * G).bool()
    return torch.zeros(visible.shape, dtype=like.dtype).masked_fill(~visible, -torch.inf).to(like.device)
