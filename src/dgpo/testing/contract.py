"""What the contract of an objective requires of every weight, whatever it claims."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
from typing import get_args

import torch
from torch import Tensor

from dgpo.correction import Truncate
from dgpo.imports import loaded, path_of
from dgpo.loss import PolicyLoss, policy_loss
from dgpo.objectives import Objective
from dgpo.objectives.objective import Read
from dgpo.objectives.third_party import checked
from dgpo.testing.batches import Batch, Parts, calibrated, linspace, random_batch
from dgpo.testing.failure import require, require_close, worst
from dgpo.tokens import TokenBatch


def check_is_a_value(objective: Objective) -> None:
    """A frozen dataclass that equals its copies, is rebuilt from its fields, and survives pickle.

    Pickle is tried for a class that can be imported.
    """
    try:
        checked(type(objective), path_of(type(objective)))
    except ValueError as error:
        raise AssertionError(f"{objective!r}: {error}") from error
    values = {field.name: copy.deepcopy(getattr(objective, field.name)) for field in dataclasses.fields(objective)}
    twin = type(objective)(**values)
    require(twin == objective, objective, f"does not equal {twin!r}, which was made from its fields")
    try:
        require(hash(twin) == hash(objective), objective, "has a different hash than an equal one")
    except TypeError as error:
        raise AssertionError(f"{objective!r}: cannot be hashed ({error}); expected fields that can") from error
    if "<locals>" not in type(objective).__qualname__ and loaded(path_of(type(objective))) is type(objective):
        again = pickle.loads(pickle.dumps(objective))
        require(again == objective, objective, f"pickle gives {again!r} back")


def check_finite(objective: Objective) -> None:
    """w, φ, value, gradient and statistics are finite for log ratios in [-700, 700], in four dtypes.

    One response of one token each, and all of one sign in one response. With A = 0 in a batch without another A.
    """
    chosen = calibrated(objective)
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        for old, highest in ((-701.0, 700), (-1e-3, 0)):
            logprob = (old + linspace(-700, highest, 281)).to(dtype)
            for signs in ((-1.0, 1.0), (0.0,)):
                sign = torch.tensor(signs, dtype=dtype).unsqueeze(1)
                rows, advantage = logprob.expand(len(signs), -1), sign.expand(-1, len(logprob))
                for shape in (rows.shape, (-1, 1)):
                    _check_finite(chosen, rows.reshape(shape), advantage.reshape(shape), old)


def _check_finite(objective: Objective, logprob: Tensor, advantage: Tensor, old: float) -> None:
    asked = logprob.clone().requires_grad_()
    given_old = torch.full_like(asked, old)
    mask, entropy = torch.ones_like(asked, dtype=torch.bool), torch.ones_like(asked)
    tokens = TokenBatch(asked, given_old, advantage, mask, entropy=entropy)
    for name, values in (("w", objective.weight(tokens)), ("φ", objective.potential(tokens).detach())):
        wrong = ~values.isfinite()
        if wrong.any():
            at = worst(values, wrong, **{"log ratio": tokens.log_ratio.detach(), "A": advantage})
            require(False, objective, f"{name} = {at} in {logprob.dtype}; expected finite values")
    out = policy_loss(asked, given_old, advantage, mask, objective=objective, entropy=entropy)
    (gradient,) = torch.autograd.grad(out.value, asked)
    signs = " or ".join(f"{one:g}" for one in sorted(set(advantage.flatten().tolist())))
    where = f"A = {signs}, log π_old = {old:g}, {logprob.dtype}"
    require(out.value.isfinite(), objective, f"the loss is not finite at {where}")
    # 16 bits of gradient may not hold e^20; their overflow is the caller's dtype, not the weight's
    fine = ~gradient.isnan() if logprob.dtype == torch.float16 else gradient.isfinite()
    require(fine.all(), objective, f"the gradient of the loss is not finite at {where}")
    bad = [name for name, value in out.statistics.items() if not value.isfinite()]
    require(not bad, objective, f"the statistics {bad} are not finite at {where}")


def check_keeps_no_state(objective: Objective) -> None:
    """The same batch gets the same weights, whatever batches came in between."""
    before = copy.deepcopy(vars(objective))
    batches = [random_batch(seed=seed).tokens() for seed in (1, 2)]
    first, _, again = (objective.calibrate(tokens).weight(tokens) for tokens in (*batches, batches[0]))
    require_close(again, first, objective, "weights of the same batch differ after another batch was seen")
    require(vars(objective) == before, objective, f"changed from {before} while it weighed; expected no state")


def check_calibration(objective: Objective) -> None:
    """`calibrate` is deterministic; it returns the objective itself unless "batch" is in `reads`."""
    one, other = (random_batch(seed=seed).tokens() for seed in (1, 2))
    first = objective.calibrate(one)
    if "batch" not in objective.reads:
        require(first is objective, objective, f"calibrate gave {first!r}; expected itself, or 'batch' in reads")
    # an objective that remembers a batch would now calibrate differently
    objective.calibrate(other)
    again = objective.calibrate(one)
    require(again == first, objective, f"calibrated on the same batch twice: {first!r}, then {again!r}")
    require(
        first.calibrate(other) is first,
        objective,
        f"calibrated, it is {first!r}, which is calibrated again; expected itself",
    )


def check_shape_and_dtype(objective: Objective) -> None:
    """w and φ are [B, T], in float32, or float64 for float64 tokens; w is detached and that of the converted tokens.

    Also of no responses, and of responses without tokens.
    """
    chosen = calibrated(objective)
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        computed = torch.float64 if dtype == torch.float64 else torch.float32
        batch = random_batch(dtype=dtype)
        batch.logprob.requires_grad_()
        weight = chosen.weight(batch.tokens())
        require(not weight.requires_grad, objective, "w has a gradient; expected a detached weight")
        expected = (tuple(batch.mask.shape), computed)
        for name, values in (("w", weight), ("φ", chosen.potential(batch.tokens()))):
            found = (tuple(values.shape), values.dtype)
            require(found == expected, objective, f"{name} of {dtype} tokens is {found}; expected {expected}")
        same = batch.but(logprob=batch.logprob.detach().to(computed)).tokens()
        require_close(weight, chosen.weight(same), objective, f"w of {dtype} tokens is not that of the same {computed}")
    for shape in ((0, 3), (3, 0)):
        nothing = torch.zeros(shape)
        tokens = TokenBatch(nothing, nothing, nothing, nothing, entropy=nothing)
        empty = objective.calibrate(tokens)
        for values in (empty.weight(tokens), empty.potential(tokens), *empty.boundaries(tokens)):
            text = f"w, φ or a boundary of an empty batch {shape} has shape {tuple(values.shape)}"
            require(values.shape == shape, objective, text)


def check_padding(objective: Objective) -> None:
    """Rows and columns of padding, whatever is in them, change no weight and no loss."""
    chosen, batch = calibrated(objective), random_batch()

    def padded(values: Tensor, fill: float) -> Tensor:
        return torch.nn.functional.pad(values, (0, 3, 0, 2), value=fill)

    wide = batch.but(
        logprob=padded(batch.logprob, math.nan),
        old_logprob=padded(batch.old_logprob, -math.inf),
        advantage=padded(batch.advantage.unsqueeze(1).expand(batch.mask.shape), 7.0),
        mask=padded(batch.mask, False),
        rollout_logprob=padded(batch.rollout_logprob, -1.0),
        entropy=padded(batch.entropy, math.nan),
    )
    B, T = batch.mask.shape
    # a sum over more positions rounds in another order
    rtol = 1e-14 if "response" in objective.reads else 0
    weight = chosen.weight(batch.tokens())[batch.mask]
    found = chosen.weight(wide.tokens())[:B, :T][batch.mask]
    require_close(found, weight, objective, "w changes when the batch is padded", rtol=rtol)
    require_close(
        _loss(chosen, wide).value, _loss(chosen, batch).value, objective, "the loss changes when the batch is padded",
        rtol=1e-13, atol=1e-15,
    )  # fmt: skip


def _loss(objective: Objective, batch: Batch) -> PolicyLoss:
    return policy_loss(
        batch.logprob, batch.old_logprob, batch.advantage, batch.mask, objective=objective, entropy=batch.entropy
    )


def check_order_of_rows(objective: Objective) -> None:
    """The order of responses does not matter."""
    chosen, batch = calibrated(objective), random_batch()
    order = torch.tensor([3, 0, 4, 2, 1])
    values = {field.name: getattr(batch, field.name)[order] for field in dataclasses.fields(batch)}
    found, expected = chosen.weight(batch.but(**values).tokens()), chosen.weight(batch.tokens())[order]
    require_close(found, expected, objective, "w changes with the order of the responses")


def check_masked_positions(objective: Objective) -> None:
    """NaN, infinities and huge numbers at masked positions contribute exactly nothing."""
    batch = random_batch()
    advantage = batch.advantage.unsqueeze(1).expand(batch.mask.shape)

    def loss(fill: float) -> tuple[PolicyLoss, Tensor, Tensor]:
        def filled(values: Tensor) -> Tensor:
            return torch.where(batch.mask, values, fill)

        logprob, entropy = filled(batch.logprob).requires_grad_(), filled(batch.entropy).requires_grad_()
        out = policy_loss(
            logprob,
            filled(batch.old_logprob),
            filled(advantage),
            batch.mask,
            objective=objective,
            rollout_logprob=filled(batch.rollout_logprob),
            correction=Truncate(level="sequence"),
            entropy=entropy,
            ref_logprob=filled(batch.ref_logprob),
            kl_coef=0.1,
            entropy_coef=0.01,
        )
        of_logprob, of_entropy = torch.autograd.grad(out.value, (logprob, entropy))
        return out, of_logprob, of_entropy

    clean = loss(-1.0)
    for junk in (math.nan, math.inf, -math.inf, 1e30):
        where = f"changes with {junk:g} at masked positions"
        found = loss(junk)
        require_close(found[0].value, clean[0].value, objective, f"the loss {where}")
        for gradient, expected in zip(found[1:], clean[1:], strict=True):
            require((gradient[~batch.mask] == 0).all(), objective, f"a gradient of a masked position {where}")
            require_close(gradient, expected, objective, f"the gradient {where}")
        require((found[0].weight[~batch.mask] == 0).all(), objective, f"w of a masked position {where}")
        changed = [name for name in clean[0].statistics if found[0].statistics[name] != clean[0].statistics[name]]
        require(not changed, objective, f"the statistics {changed}: each {where}")


def check_advantage_of_zero(objective: Objective) -> None:
    """A token with A = 0 contributes exactly nothing, whatever its ratio, but counts in the normaliser.

    With a penalty it contributes that and nothing else.
    """
    chosen, batch = calibrated(objective), random_batch()
    advantage = batch.advantage.unsqueeze(1).repeat(1, batch.mask.shape[1])
    idle = torch.rand(batch.mask.shape, generator=torch.Generator().manual_seed(0)) < 0.4
    advantage[idle] = 0.0

    zero = (advantage == 0) & batch.mask
    c = 1 / batch.mask.sum().double()

    def loss(x: float) -> tuple[Tensor, Tensor, float]:
        """Value and gradient, less those of the penalty where A = 0, and how much that may have rounded."""
        logprob = torch.where(idle, batch.old_logprob + x, batch.logprob).requires_grad_()
        with_zeros = batch.but(logprob=logprob, advantage=advantage)
        value = _loss(chosen, with_zeros).value
        (gradient,) = torch.autograd.grad(value, logprob)
        if not chosen.penalises:  # nothing is subtracted, and every digit counts
            return value.detach(), gradient, 0.0
        kappa, slope = (torch.where(zero, c * part, 0.0) for part in chosen.penalty(with_zeros.tokens()))
        return value.detach() - kappa.sum(), gradient - slope, 1e-12 * (1 + kappa.sum().item())

    value, gradient, _ = loss(0.0)
    for x in (-250.0, -1.0, 1.0, 250.0):
        far_value, far_gradient, atol = loss(x)
        where = f"with tokens of A = 0 at a log ratio of {x:g}"
        nothing = torch.zeros_like(far_gradient[advantage == 0])
        text = f"a gradient of a token of A = 0 {where}"
        require_close(far_gradient[advantage == 0], nothing, objective, text, atol=atol)
        if "response" not in objective.reads:
            require_close(far_value, value, objective, f"the loss changes {where}", atol=atol)
            require_close(far_gradient, gradient, objective, f"the gradient changes {where}", atol=atol)


def check_penalty(objective: Objective) -> None:
    """A penalty is finite, 0 or greater, and its slope is its derivative. Where there is none, `penalises` is False."""
    declared = type(objective).penalty is not Objective.penalty
    text = f"penalises = {objective.penalises}, but penalty is not defined; expected both, or neither"
    require(declared or not objective.penalises, objective, text)
    if not objective.penalises:
        return
    chosen, batch, shift = calibrated(objective), random_batch(spread=1.5), 1e-6
    at, before, after = (
        chosen.penalty(batch.but(logprob=batch.logprob + step).tokens()) for step in (0.0, -shift, shift)
    )
    for name, values in zip(at._fields, at, strict=True):
        require(values.isfinite().all(), objective, f"the {name} of its penalty is not finite")
    lowest = at.value.min().item()
    require(lowest >= 0, objective, f"its penalty is {lowest:g}; expected 0 or greater")
    # a jump or a kink near a token would be no error: penalties of chosen tokens have both
    smooth = batch.mask & ((after.slope - before.slope).abs() <= 1e-3)
    found = ((after.value - before.value) / (2 * shift))[smooth]
    text = "the slope of its penalty is not the derivative"
    require_close(found, at.slope[smooth], objective, text, rtol=1e-5, atol=1e-6)


def check_no_host_synchronisation(objective: Objective) -> None:
    """Loss and statistics run on the meta device, which has no values, so that reading one on the host raises an error.

    An objective that reads the batch is allowed a synchronisation.
    """
    if "batch" in objective.reads:
        return
    _value_and_gradient(objective, "cpu")  # an error of the weight itself is not about the device
    try:
        out = _value_and_gradient(objective, "meta")
    except (RuntimeError, NotImplementedError) as error:
        raise AssertionError(
            f"{objective!r}: reads a value on the host, which waits for the device: {error}"
        ) from error
    away = {name: value for name, value in out.statistics.items() if value.device.type != "meta" or value.dim()}
    require(not away, objective, f"the statistics {list(away)} are not scalars on the device of the tokens")


def _value_and_gradient(objective: Objective, device: str) -> PolicyLoss:
    """A loss with every term, differentiated."""
    logprob = torch.zeros(3, 4, device=device, requires_grad=True)
    other, mask = torch.zeros(3, 4, device=device), torch.ones(3, 4, device=device, dtype=torch.bool)
    out = policy_loss(
        logprob,
        other,
        other,
        mask,
        objective=objective,
        rollout_logprob=other,
        correction=Truncate(),
        entropy=other,
        ref_logprob=other,
        kl_coef=0.1,
        entropy_coef=0.1,
    )
    torch.autograd.grad(out.value, logprob)
    return out


def changes(objective: Objective, read: Read, seed: int) -> bool:
    """Whether a weight changes in any bit if only this changes."""
    one, other = Parts.random(2 * seed), Parts.random(2 * seed + 1)
    if read == "batch":
        # every second response stays; the others change, and with them only what `calibrate` sees
        kept = (torch.arange(len(one.mask)) % 2 == 0).unsqueeze(1).expand_as(one.mask)
        changed = one.but(other, ~kept)
        chosen = objective.calibrate(changed.tokens())
    else:
        kept = torch.zeros_like(one.mask)
        # one token per response stays, whatever changes around it
        kept[:, 3] = True
        one = dataclasses.replace(one, mask=one.mask | kept)
        # calibrated once, so that a change cannot act through the batch
        chosen = objective.calibrate(one.tokens())
        if read == "response":
            changed = one.but(other, ~kept)
        else:
            kept = one.mask
            changed = dataclasses.replace(one, **{read: getattr(other, read)})
    before = _coefficients(objective.calibrate(one.tokens()), one.tokens())
    after = _coefficients(chosen, changed.tokens())
    return not torch.equal(before[:, kept & one.mask], after[:, kept & one.mask])


def _coefficients(objective: Objective, tokens: TokenBatch) -> Tensor:
    """[2, B, T] w and the slope of the penalty, which is 0 where there is none."""
    weight = objective.weight(tokens)
    return torch.stack([weight, objective.penalty(tokens).slope if objective.penalises else torch.zeros_like(weight)])


def check_reads(objective: Objective) -> None:
    """Only what `reads` names changes a weight."""
    known = get_args(Read)
    unknown = sorted(set(objective.reads) - set(known))
    require(not unknown, objective, f"reads has {unknown}; expected some of {', '.join(known)}")
    for read in known:
        if read not in objective.reads:
            changed = any(changes(objective, read, seed) for seed in range(3))
            require(not changed, objective, f"w changes with {read!r} alone, which reads = {sorted(objective.reads)}")
