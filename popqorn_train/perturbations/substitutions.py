"""A second kind of perturbation: words replaced by synonyms, at most ``budget`` at once.

With v[t, c] the change that candidate c makes to frame t, the least value of a linear function is

    sum_t slope[t] . value[t]  +  the budget least of  min(0, min_c slope[t] . v[t, c]), summed

because frames are chosen independently, each at its best candidate. That is exact.

B: batch, T: frames, N: features of an embedding, C: candidates of a frame, K: bounded outputs.
Source: Jia et al., "Certified Robustness to Adversarial Word Substitutions", EMNLP 2019, for the
set of substitutions (theirs is without a budget).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from popqorn_train.perturbations.box import Box, is_plain
from popqorn_train.perturbations.lp_ball import LpBall
from popqorn_train.perturbations.region import Bounds, dot


class Choices(NamedTuple):
    """What the network may read instead of the embeddings of a sentence.

    Attributes:
        value: ``(B, T, N)`` what it reads.
        changes: ``(B, T, C, N)`` from there to every candidate; 0 where there are fewer.
        budget: ``(B,)`` frames that may change at once.
    """

    value: Tensor
    changes: Tensor
    budget: Tensor

    def minimum(self, slope: Tensor) -> Tensor:
        """Least value of ``sum(slope * x)`` over the first t frames, exact.

        Args:
            slope: ``(B, K, t, N)`` or ``(1, K, t, N)``.

        Returns:
            ``(B, K)``.
        """
        return dot(slope, self.value[:, : slope.shape[2]]) + self.fall(slope)

    def extremes(self, slope: Tensor) -> Bounds:
        """Least and greatest value; see ``minimum``."""
        return Bounds(self.minimum(slope), -self.minimum(-slope))

    def fall(self, slope: Tensor, first: int = 0) -> Tensor:
        """How far ``sum(slope * x)`` may fall below its value at the centre.

        Args:
            slope: ``(B, K, t, N)`` or ``(1, K, t, N)``, on t frames.
            first: of these frames.

        Returns:
            ``(B, K)``, not positive.
        """
        time = slope.shape[2]
        changes = self.changes[:, first : first + time].transpose(-1, -2)  # (B, t, N, C)
        gains = torch.matmul(slope.transpose(1, 2), changes)  # (B, t, K, C)
        best = gains.amin(-1).clamp(max=0).transpose(1, 2)  # (B, K, t)
        totals = best.sort(-1).values.cumsum(-1)
        totals = torch.cat([torch.zeros_like(totals[..., :1]), totals], -1)
        place = self.budget.clamp(max=time).view(-1, 1, 1).expand(-1, totals.shape[1], 1)
        return totals.expand(len(place), -1, -1).gather(2, place).squeeze(-1)

    def frame(self, t: int) -> "Choices":
        """One frame alone, as a sequence of one."""
        return Choices(self.value[:, t : t + 1], self.changes[:, t : t + 1], self.budget)

    def _hull(self, moves: Tensor) -> Bounds:
        """Range over the candidates ``(B, T, C, *)`` and no change; without a budget, a point."""
        some = (self.budget > 0).view(-1, *[1] * (moves.ndim - 2)).to(moves)
        low, high = moves.amin(2).clamp(max=0), moves.amax(2).clamp(min=0)
        return Bounds(low * some, high * some)

    def linear_bounds(self, weight: Tensor) -> Bounds:
        """Range of ``weight @ x[t]`` in every frame, exact; ``weight`` is ``(O, N)``."""
        center, moved = self.value @ weight.T, self._hull(self.changes @ weight.T)
        return Bounds(center + moved.lower, center + moved.upper)

    def coordinate_bounds(self) -> Bounds:
        """Range of every coordinate, ``(B, T, N)``."""
        moved = self._hull(self.changes)
        return Bounds(self.value + moved.lower, self.value + moved.upper)


@dataclass(frozen=True, eq=False)
class Substitutions:
    """Tokens may be replaced by listed synonyms, at most ``budget`` of them at once.

    Attributes:
        candidates: for a token the tokens that may stand in its place, ``{token: [others]}``; or
            a ``(B, T, C)`` integer tensor of candidates for every place, -1 where there is none.
        budget: how many tokens may change at once, a number or ``(B,)``; None changes all.
        share: how much of the way from a token's embedding to those of its candidates is gone.
            Losses train on other shares than 1, at which no word is replaced: smaller ones ramp
            up, and larger ones train on more than what is certified.

    Raises:
        ValueError, TypeError: a value out of range, at construction.
    """

    candidates: Mapping[int, Sequence[int]] | Tensor
    budget: int | Tensor | None = 1
    share: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.candidates, Mapping | Tensor):
            kind = type(self.candidates).__name__
            raise TypeError(
                f"`candidates` must be a mapping from tokens to tokens or a tensor, got {kind}."
            )
        given = self.candidates
        if isinstance(given, Tensor) and (given.ndim != 3 or given.is_floating_point()):
            found = f"{given.dtype} of shape {tuple(given.shape)}"
            raise ValueError(f"`candidates` must be (B, T, C) tokens, got {found}.")
        budget = torch.as_tensor(0 if self.budget is None else self.budget)
        if budget.is_floating_point() or budget.ndim > 1 or bool((budget < 0).any()):
            raise ValueError(
                f"`budget` must be a non-negative integer, or one per sample, got {self.budget}."
            )
        if not isinstance(self.share, int | float) or not 0 <= self.share < math.inf:
            raise ValueError(f"`share` must be a number from 0 on, got {self.share!r}.")

    def sized(self, share: float) -> "Substitutions":
        """The same candidates, with another share of the way to them."""
        return replace(self, share=share)

    def pick(self, chosen: Tensor, batch: int) -> "Substitutions":
        """Those of some samples of a batch."""

        def cut(value: Tensor) -> Tensor:
            whole = value.ndim > 0 and len(value) == batch
            return value[chosen.to(value.device)] if whole else value

        candidates, budget = self.candidates, self.budget
        return replace(
            self,
            candidates=cut(candidates) if isinstance(candidates, Tensor) else candidates,
            budget=cut(budget) if isinstance(budget, Tensor) else budget,
        )

    def of(self, tokens: Tensor) -> Tensor:
        """Candidates ``(B, T, C)`` for tokens ``(B, T)``, the token itself where there are fewer.

        Raises:
            ValueError: candidates for another batch or length.
        """
        if isinstance(self.candidates, Tensor):
            found = self.candidates.to(tokens.device)
            if found.shape[:2] != tokens.shape:
                raise ValueError(
                    f"`candidates` must be {(*tokens.shape, 'C')}, got {tuple(found.shape)}."
                )
        else:
            rows = [list(self.candidates.get(token, ())) for token in tokens.flatten().tolist()]
            width = max(1, *[len(row) for row in rows])
            filled = [row + [-1] * (width - len(row)) for row in rows]
            found = torch.tensor(filled, device=tokens.device).view(*tokens.shape, width)
        return torch.where(found < 0, tokens[..., None], found)

    def around(
        self, tokens: Tensor, embed: Callable[[Sequence[Tensor]], list[Tensor]], value: Tensor
    ) -> Choices:
        """Place the substitutions around a batch.

        Args:
            tokens: ``(B, T)``.
            embed: from several tokens of shape ``(B, T)`` to what the network reads, ``(B, T, N)``
                each.
            value: ``(B, T, N)`` what it reads at ``tokens``.

        Raises:
            ValueError: candidates or budgets that do not fit.
        """
        changes = torch.stack(embed(self.of(tokens).unbind(2)), 2) - value[:, :, None]
        changes = changes if self.share == 1 else self.share * changes
        whole = tokens.shape[1] if self.budget is None else self.budget
        budget = torch.as_tensor(whole, device=value.device)
        if budget.shape not in ((), (len(value),)):
            shape = tuple(budget.shape)
            raise ValueError(f"`budget` must be a number or ({len(value)},), got shape {shape}.")
        return Choices(value, changes, budget.expand(len(value)))


def check_replaced(ball: Any) -> None:
    """Refuse substitutions that replace no word: a certificate would be about no sentence.

    Raises:
        ValueError: naming the argument.
    """
    if isinstance(ball, Substitutions) and ball.share != 1:
        raise ValueError(
            f"`share` of Substitutions must be 1 here, got {ball.share}: at any other no word is "
            "replaced. It is for losses; leave it out."
        )


def check_words(words: Any, ball: LpBall, box: Box | None) -> None:
    """Refuse what is no substitution, and substitutions beside what describes a ball or a box.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    if not isinstance(words, Substitutions):
        kind = type(words).__name__
        raise TypeError(f"`words` must be Substitutions or None, got {kind}.")
    if box is not None or not is_plain(ball):
        raise ValueError(
            "`words` says what may move: leave out box, p, low, high, scope, frames and features."
        )
