"""The tasks of the atlas: prompts and right answers of fixed length, as tokens.

0 to 9 are digits, `END` ends a response, `PLUS` and `EQUALS` are separators, `FORWARD` and `BACKWARD` name an
order. Every task has one right answer to a prompt, so that a policy's probability of a correct answer is that of this
answer: one forward pass gives its score exactly, without sampling.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

PLUS, EQUALS, FORWARD, BACKWARD, END = 10, 11, 12, 13, 14
VOCABULARY = 15

Draw = Callable[[int, torch.Generator], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Problems:
    """A task.

    Attributes:
        name: of the task.
        prompt, response: tokens of every prompt and of every right answer, `END` included.
        draw: (count, generator) -> prompts [count, prompt] and right answers [count, response].
        start: mean probability of the right answer at which RL begins.
        habit: prompts -> a wrong answer that the start prefers; None for a start that is only unsure.
    """

    name: str
    prompt: int
    response: int
    draw: Draw
    start: float
    habit: Callable[[Tensor], Tensor] | None = None


def _digits(count: int, length: int, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 10, (count, length), generator=generator)


def _ended(answers: Tensor) -> Tensor:
    return torch.cat([answers, torch.full((len(answers), 1), END)], 1)


def _asked(*parts: Tensor | int) -> Tensor:
    count = next(len(part) for part in parts if isinstance(part, Tensor))
    return torch.cat([part if isinstance(part, Tensor) else torch.full((count, 1), part) for part in parts], 1)


def _reverse(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    digits = _digits(count, 5, generator)
    return _asked(digits, EQUALS), _ended(digits.flip(1))


def _addition(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    first, second = _digits(count, 2, generator), _digits(count, 1, generator)
    total = 10 * first[:, 0] + first[:, 1] + second[:, 0]
    answer = torch.stack([total // 100, total // 10 % 10, total % 10], 1)
    return _asked(first, PLUS, second, EQUALS), _ended(answer)


def _rare(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    digits = _digits(count, 3, generator)
    return _asked(digits, EQUALS), _ended(_asked(BACKWARD, digits.flip(1)))


def _forward(prompts: Tensor) -> Tensor:
    return _ended(_asked(FORWARD, prompts[:, :3]))


PROBLEMS: dict[str, Problems] = {
    "reverse": Problems("reverse", 6, 6, _reverse, start=0.1),
    "addition": Problems("addition", 5, 4, _addition, start=0.3),
    "rare": Problems("rare", 4, 5, _rare, start=1e-3, habit=_forward),
}
"""Name -> task."""
