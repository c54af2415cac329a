"""A certified loss: cross entropy on clean, attacked and worst-case logits.

    kappa CE(clean) + (1 - kappa) (alpha CE(bound) + (1 - alpha) CE(attack))

where the worst-case logits are minus the certified margins, 0 at the label; and, if asked for, a
term that keeps the intervals of recurrent states narrow beside their signal (state_widths.py).

Sources: Wong and Kolter, ICML 2018 (worst-case logits); Gowal et al., "IBP", ICCV 2019 (kappa);
De Palma et al., "MTL-IBP", ICLR 2024 (alpha); Zhang et al., "CROWN-IBP", ICLR 2020 (beta).
"""

import math
from collections.abc import Hashable, Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from popqorn_train.bounds.backward import Enclosure
from popqorn_train.bounds.methods import TRAINING, Method, method_named
from popqorn_train.bounds.node import Node
from popqorn_train.certificates.instance import Instance
from popqorn_train.certificates.isolation import full_precision, undisturbed
from popqorn_train.certificates.margins import (
    bounded_margins,
    least,
    other_classes,
    proved,
    with_own,
)
from popqorn_train.certificates.module_probe import Claim
from popqorn_train.certificates.pgd import search
from popqorn_train.certificates.probe_points import changed
from popqorn_train.certificates.unread import fitted
from popqorn_train.certificates.word_attack import search_words
from popqorn_train.perturbations.box import Box, Perturbation, check_box
from popqorn_train.perturbations.lp_ball import LpBall
from popqorn_train.perturbations.masks import Mask, as_mask
from popqorn_train.perturbations.region import Scope
from popqorn_train.perturbations.substitutions import Substitutions, check_words
from popqorn_train.training.compiled import CompiledTerm, Question, Term
from popqorn_train.training.objective import (
    LossParts,
    Objective,
    Prepared,
    check_share,
    check_weight,
)
from popqorn_train.training.running_statistics import buffers_left_alone
from popqorn_train.training.state_widths import drowned


class Worst(NamedTuple):
    """The bound term.

    Attributes:
        loss: scalar.
        certified: share of the batch that is certified.
        found: ranges that it comes from; None where they are of no single ball.
    """

    loss: Tensor
    certified: Tensor
    found: Enclosure | None


class Bounded(NamedTuple):
    """The bound term of a graph, and what it proves.

    Attributes:
        loss: scalar.
        certified: share of the batch that is certified.
        claim: which samples are.
        found: ranges and relaxations.
    """

    loss: Tensor
    certified: Tensor
    claim: Claim
    found: Enclosure


class CertifiedLoss(Objective):
    """Loss whose gradient raises certified margins.

    ``epsilon``, ``kappa``, ``alpha`` and ``signal`` are plain attributes, not in the state dict:
    ramp them by hand or by ``EpsilonSchedule``.

    Args:
        epsilon: size of the ball, in the units of the input.
        p: norm.
        low: least value of an input, or None.
        high: greatest value, or None.
        frames: ``(T,)`` or ``(B, T)`` mask of the perturbed frames, or a list of booleans.
        features: ``(N,)`` or ``(B, N)`` mask of the perturbed features, likewise.
        scope: one ball per frame, or one for the sequence.
        box: a range for each coordinate, in place of a ball; ``epsilon`` is then the share of it
            that inputs may use, from 0 to 1. A plain attribute too: set it before every call if
            it differs from batch to batch.
        words: words that may be replaced, instead of a ball; ``epsilon`` is then the share of the
            way to them, 1 for the words themselves, more for a margin. A plain attribute too.
        method: bounding method; ``"ibp"`` costs least and trains best.
        kappa: weight of the clean term, from 0 to 1.
        alpha: weight of the bound against the attack, from 0 to 1.
        attack_steps: gradient steps of the attack.
        signal: weight of ``drowned``, which keeps the intervals of states narrow beside what the
            states tell apart; ``EpsilonSchedule`` lowers it to 0 over the ramp.
        compiled: compile the bound term and its gradients, once for every size of a batch, which
            takes from half a minute to several minutes and makes steps up to two times faster,
            on CUDA six times: there it holds the memory that a step takes.
            What cannot be compiled runs as without, and a warning says why.

    Raises:
        ValueError, TypeError: an argument out of range.
    """

    ramped: ClassVar[tuple[str, ...]] = ("epsilon", "kappa", "alpha", "signal")

    def __init__(
        self,
        epsilon: float,
        p: float = math.inf,
        *,
        low: float | Tensor | None = None,
        high: float | Tensor | None = None,
        frames: Mask | None = None,
        features: Mask | None = None,
        scope: Scope = "frame",
        box: Box | None = None,
        words: Substitutions | None = None,
        method: str | Method = "ibp",
        kappa: float = 0.0,
        alpha: float = 1.0,
        attack_steps: int = 5,
        signal: float = 0.0,
        compiled: bool = False,
    ) -> None:
        super().__init__()
        check_share("kappa", kappa)
        check_share("alpha", alpha)
        check_weight("signal", signal)
        if attack_steps < 1:
            raise ValueError(f"`attack_steps` must be at least 1, got {attack_steps}.")
        self.epsilon, self.p, self.kappa, self.alpha = epsilon, p, kappa, alpha
        self.signal = signal
        self.low, self.high, self.scope = low, high, scope
        self.frames, self.features = as_mask("frames", frames), as_mask("features", features)
        self.box, self.words = box, words
        self.method, self.attack_steps = method_named(method, TRAINING), attack_steps
        self.compiled = CompiledTerm() if compiled else None
        self.ball()

    def extra_repr(self) -> str:
        """Settings, for ``print(loss)``."""
        shares = ", ".join(f"{name}={getattr(self, name)}" for name in self.ramped)
        return (
            f"{shares}, p={self.p:g}, low={self.low}, high={self.high}, scope={self.scope}, "
            f"method={self.method}, compiled={self.compiled is not None}"
        )

    def ball(self, share: float = 1.0) -> Perturbation | Substitutions:
        """What may move now; of a share of epsilon."""
        ball = LpBall(
            share * self.epsilon,
            self.p,
            frames=self.frames,
            features=self.features,
            scope=self.scope,
            low=self.low,
            high=self.high,
        )
        if self.words is not None:
            check_words(self.words, ball, self.box)
            return self.words.sized(share * self._share("words", math.inf) * self.words.share)
        if self.box is None:
            return ball
        check_box(self.box, ball)
        return self.box.sized(share * self._share("box", 1.0) * self.box.share)

    def _share(self, name: str, most: float) -> float:
        """Epsilon as a share of what moves; refused if it is none."""
        if not isinstance(self.epsilon, int | float) or not 0 <= self.epsilon <= most:
            upto = f"from 0 {'on' if most == math.inf else f'to {most:g}'}"
            raise ValueError(
                f"`epsilon` must be the share of `{name}` that may move, {upto}, got "
                f"{self.epsilon!r}."
            )
        return self.epsilon

    @property
    def has_clean_term(self) -> bool:
        """See ``Objective``."""
        return self.kappa > 0

    def terms(self, batch: Prepared) -> LossParts:
        """See ``Objective``."""
        self._check()
        zero = batch.zero()
        total = clean = attacked = signal = zero
        worst = Worst(zero, zero, None)
        if self.kappa > 0:
            total = clean = cross_entropy(batch.logits, batch.target)
        if self.kappa < 1 and self.alpha > 0:
            worst = self._worst(batch)
        if self.kappa < 1 and self.alpha < 1:
            attacked = self._attacked(batch)
        if self.kappa < 1:
            robust = self.alpha * worst.loss + (1 - self.alpha) * attacked
            total = self.kappa * clean + (1 - self.kappa) * robust
        if self.signal > 0 and worst.found is not None:
            signal = drowned(worst.found)
            total = total + self.signal * signal
        terms = (term.detach() for term in (clean, worst.loss, attacked, worst.certified, signal))
        parts = LossParts(total, *terms)
        if self.observer is not None:
            self.observer(batch, parts, worst.found)
        return parts

    def _check(self) -> None:
        """Refuse values that were set out of range."""
        for name in self.ramped:
            if name == "signal":
                check_weight(name, self.signal)
            elif name != "epsilon":
                check_share(name, getattr(self, name))

    def _worst(self, batch: Prepared) -> Worst:
        """Cross entropy on the worst-case logits."""
        instance, ball = self._region(batch)
        target = batch.target.to(instance.value.device)
        with undisturbed(batch.model):
            graph = instance.graph(ball)
            if self.compiled is not None and not batch.is_checked and not self._wants_ranges:
                numbers = [instance.value.new_tensor(number) for number in self._numbers]
                question = Question(self._term, self._variant, graph, target, numbers)
                return Worst(*self.compiled(question), None)
            bounded = self._bounded(graph, target)
            batch.probe(instance, ball, bounded.claim, graph, bounded.found)
        return Worst(bounded.loss, bounded.certified, bounded.found)

    @property
    def _wants_ranges(self) -> bool:
        """Whether somebody looks at the ranges that the bound comes from."""
        return self.signal > 0 or self.observer is not None

    @property
    def _numbers(self) -> Sequence[float]:
        """Settings that the bound term depends on, but for those that choose the way to it."""
        return ()

    @property
    def _variant(self) -> Hashable:
        """Settings that choose the way to the bound term."""
        return self.method

    def _term(self, graph: Node, target: Tensor, *numbers: Tensor) -> Term:
        """The bound term of a graph, from ``_numbers`` as tensors."""
        return Term(*self._bounded(graph, target, *numbers)[:2])

    def _bounded(self, graph: Node, target: Tensor, *numbers: Tensor) -> Bounded:
        """The bound term of a graph, from margins."""
        assert graph.region is not None
        method, like = self._bounding(*numbers), graph.region.value
        margins, found = bounded_margins(graph, target, method, like)
        others = other_classes(target, graph.shape[0])
        whole = with_own(margins.detach(), others, math.inf)
        good = proved(least(whole))
        loss = cross_entropy(-with_own(margins, others, 0), target)
        return Bounded(loss, good.float().mean(), Claim(good, whole), found)

    def _region(self, batch: Prepared) -> tuple[Instance, Perturbation | Substitutions]:
        """What is bounded: a ball, and the inputs in its middle."""
        ball = self.ball()
        return fitted(batch.instance, ball), ball

    def _bounding(self, *numbers: Tensor) -> Method:
        """How it is bounded."""
        return self.method

    def _attacked(self, batch: Prepared) -> Tensor:
        """Cross entropy on the logits under attack."""
        moved = self._found(batch, self.ball())
        with full_precision(batch.model), buffers_left_alone(batch.model):
            return cross_entropy(batch.instance.logits(moved), batch.target)

    def _found(self, batch: Prepared, ball: Perturbation | Substitutions) -> Tensor:
        """Where the attack ends, ``(B, T, N)``; it moves as the inputs do, if these train."""
        instance, steps = fitted(batch.instance, ball), self.attack_steps
        with torch.no_grad(), undisturbed(batch.model):
            if isinstance(ball, Substitutions):
                picked = search_words(instance, batch.target, ball, steps=steps, restarts=1)[1]
            else:
                at = search(instance, batch.target, ball, steps=steps, restarts=1, seed=0).moved
        if isinstance(ball, Substitutions):
            return instance.unread(changed(instance.choices(ball), picked))
        return at + (instance.center - instance.center.detach())
