"""What a training step does: supervised on the source, and self-training on the target."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Protocol, cast

import numpy as np
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from earthgate_geo.errors import EarthgateError, InputError
from earthgate_geo.metrics import UNKNOWN
from earthgate_geo.models.segmenter import Segmenter
from earthgate_geo.policies import Tuner
from earthgate_geo.recipe import Recipe
from earthgate_geo.training.loop import fast_arithmetic
from earthgate_geo.training.losses import head_loss, informative
from earthgate_geo.training.multitask import Reconstruction
from earthgate_geo.training.teacher import Teacher

Batch = Mapping[str, Any]

Restyle = Callable[[Tensor, np.random.Generator], Tensor]
"""Images (batch, band, row, col) in 0..1 in another style, as ``data.style.StyleInjector`` does."""

_IN_STYLE, _STYLE, _HIDDEN = 4, 5, 6
"""What random numbers are for, beside those of ``data.stream``."""

_ALIGNED_IMAGES = 16
"""Target images behind the class shares that ``Dacs.aligned`` holds to."""

_UNDECAYED = (nn.LayerNorm, nn.GroupNorm, nn.Embedding)
_MOMENTUM = 0.9
"""Of stochastic gradient descent."""


class Steps(Protocol):
    """The batches of a run, as ``data.stream.StepStream`` has them."""

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches of all steps that are left."""

    def batch(self, step: int) -> Batch:
        """Return the batch of one step, which depends on nothing but the step."""


StepsOf = Callable[[int, int, int], Steps]
"""From the first step to do, the rank of this process and the number of processes."""


class SourceTask(LightningModule):
    """Trains what a policy opens, and the head, by the recipe.

    Every step trains on labelled source images. With ``recipe.dacs`` an averaged teacher labels
    target images, half of the classes of a source image are pasted onto each, and the student
    trains on these, too. Whenever the policy is due it chooses modules: on source labels until
    there are pseudo-labels, then on those of the target. With ``recipe.styles`` all source images
    of some steps are restyled; with ``recipe.multitask`` hidden parts of them are reconstructed,
    too. Neither touches the target or the choices.

    All that is random in a step is drawn from the seed, the step and the place in the batch or the
    process: a resumed run goes on as if it had never stopped.

    Source:
        Earth-Adapter's code, arXiv:2504.06220 (AdamW, falling rate, simplified DACS); the recipe
        of CrossEarth-Gate, arXiv:2511.20302, is not known. Ours: unknown pixels are
        never pasted, a choice looks at the images of the coming steps, and bfloat16 where it is
        native. Styled steps and reconstruction: CrossEarth, arXiv:2410.22629; styled images are
        normalised like all others, which a training build of its authors left out.

    Args:
        model: Where ``tuner`` is at work.
        tuner: What trains.
        steps_of: The batches.
        recipe: All numbers.
        named: Classes that the labels name where ``OTHER`` stands for the rest; None if all.
        restyle: Needed where ``recipe.styles`` is set, and nowhere else.

    Raises:
        InputError: ``restyle`` without ``recipe.styles`` or the other way round, or reconstruction
            for a model with heights.
    """

    losses: list[float]
    """Of every step so far, in this process."""

    seconds: float
    """Of all steps and choices so far, without what ``after_step`` takes."""

    seconds_selecting: float
    """Of the choices alone."""

    after_step: Callable[[int], None]
    """Told the number of finished steps."""

    workers: int
    """Processes that read batches ahead."""

    about: Mapping[str, Any]
    """What decides the run, JSON values: a state of another is refused."""

    def __init__(
        self,
        model: Segmenter,
        tuner: Tuner,
        steps_of: StepsOf,
        recipe: Recipe,
        *,
        named: frozenset[int] | None = None,
        restyle: Restyle | None = None,
    ) -> None:
        super().__init__()
        if (recipe.styles is None) != (restyle is None):
            raise InputError(
                found="a recipe with styles and no bank of them"
                if restyle is None
                else "a bank of styles and a recipe without",
                expected="both or neither",
            )
        if recipe.multitask and model.config.heights:
            raise InputError(
                found="reconstruction beside the classes for a model with heights",
                expected="a model that sees the image alone",
                fix="Train without --multitask",
            )
        self.strict_loading = False  # a state leaves out what is frozen
        self.model, self.tuner, self.recipe = model, tuner, recipe
        self.losses, self.seconds, self.seconds_selecting = [], 0.0, 0.0
        self.after_step, self.workers, self.about = lambda _: None, 0, recipe.to_json()
        self._steps_of, self._restyle = steps_of, restyle
        self.beside = (
            Reconstruction(model, recipe.multitask, crop_px=recipe.crop_px, seed=recipe.seed)
            if recipe.multitask
            else None
        )
        classes = range(len(model.config.classes))
        self._named = None if named is None else torch.tensor([c in named for c in classes])
        self._teacher: Teacher | None = None
        self._resumed: Mapping[str, Any] | None = None
        self._since = 0.0
        self._opened = tuner.toolbox.opened if tuner.toolbox else frozenset()
        # Whatever wraps the model for several processes must see all that may ever train.
        for parameter in tuner.parameters.values():
            parameter.requires_grad_(True)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the recipe's optimiser and its rate."""
        optimizer: torch.optim.Optimizer = (
            torch.optim.SGD(self._groups(), momentum=_MOMENTUM)
            if self.recipe.optimiser == "sgd"
            else torch.optim.AdamW(self._groups())
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.recipe.rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_fit_start(self) -> None:
        """Set up what needs the device and the other processes; go on where a state left off."""
        if self.tuner.toolbox is not None:
            self.tuner.toolbox.open(self._opened)
        if self.trainer.world_size > 1:
            self.tuner.combine = self._mean
        if self._named is not None:
            self._named = self._named.to(self.device)
        if self.recipe.dacs is not None:
            parameters = self.tuner.parameters
            self._teacher = Teacher(self.model, parameters, self.recipe.dacs, mean=self._mean)
        if self._resumed is not None:
            self.tuner.load_state(self._resumed["tuner"])
            if self._teacher is not None:
                self._teacher.load_state(self._resumed["teacher"])
            self._resumed = None

    def train_dataloader(self) -> Iterable[Batch]:
        """Return the batches of the steps that are left."""
        if not self.workers:
            return self._steps()
        stream = cast("IterableDataset[Batch]", self._steps())
        return DataLoader(stream, batch_size=None, num_workers=self.workers)

    def on_train_start(self) -> None:
        """Start the clock."""
        self._since = time.perf_counter()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:  # noqa: ARG002 - a hook
        """Choose modules where it is time to."""
        step = self.trainer.global_step
        self._seed(step)
        teacher = self._teaching(step)
        if teacher is not None and teacher.must_look:
            teacher.look(*self._coming(step, _ALIGNED_IMAGES, "target"))
        if self.tuner.due(step):
            started = time.perf_counter()
            self.tuner.select(self._single_losses(step))
            self.seconds_selecting += time.perf_counter() - started

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:  # noqa: ARG002 - a hook
        """Return the loss of a step.

        Raises:
            EarthgateError: It is not finite.
        """
        step = self.trainer.global_step
        self._seed(step)  # again: a choice may have drawn, and must change nothing else
        loss = self.source_loss(*batch["source"], step=step)
        teacher = self._teaching(step)
        if teacher is not None:
            count = len(batch["target"])
            places = range(self.global_rank * count, (self.global_rank + 1) * count)
            rngs = [np.random.default_rng((self.recipe.seed, step, place)) for place in places]
            images, pseudo = teacher.mix(batch, rngs)
            loss = loss + teacher.weight * self.loss(images, pseudo.labels, pseudo.weights)
        self.losses.append(float(loss.detach()))
        if not math.isfinite(self.losses[-1]):
            raise EarthgateError(
                found=f"training diverged at step {step + 1} (loss {self.losses[-1]})",
                fix="Try a lower learning rate or another seed",
            )
        return loss

    def loss(self, images: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the loss on images (batch, channel, row, col).

        Args:
            images: As the model takes them.
            labels: (batch, row, col), class indices, ``OTHER`` or ``UNKNOWN``. Where the labels
                name every class, ``OTHER`` says nothing.
            weights: (batch, row, col), 0..1; what is not weighed counts as 1. Half the weights
                make half the loss.
        """
        with fast_arithmetic(images.device):
            return self._label_loss(self.model.features(images), labels, weights)

    def source_loss(self, images: Tensor, labels: Tensor, *, step: int) -> Tensor:
        """Return all that a step learns from labelled images, as in ``loss``: styled if it is so.

        With ``recipe.multitask`` the loss of the reconstruction is part of it.
        """
        styled = self._styled(images, step)
        with fast_arithmetic(images.device):
            features = self.model.features(images if styled is None else styled)
            loss = self._label_loss(features, labels)
            if self.beside is None:
                return loss
            rngs = self._rngs(_HIDDEN, step, len(images))
            again = None if styled is None else (styled, features[0])
            return loss + self.beside.loss(self.model, images, rngs, styled=again)

    def _label_loss(
        self,
        features: tuple[Sequence[Tensor], torch.Size],
        labels: Tensor,
        weights: Tensor | None = None,
    ) -> Tensor:
        loss = head_loss(self.model, features, labels, named=self._named, weights=weights)
        if weights is None:
            return loss
        # It is a mean by weight: unsure pixels would count less among themselves, but no less.
        known = informative(labels, named=self._named) != UNKNOWN
        return loss * (weights * known).sum() / known.sum().clamp(min=1)

    def _styled(self, images: Tensor, step: int) -> Tensor | None:
        """Return the images in drawn styles, in all processes of a styled step.

        Heights have no style.
        """
        styles, restyle = self.recipe.styles, self._restyle
        if styles is None or restyle is None:
            return None
        drawn = np.random.default_rng((self.recipe.seed, _IN_STYLE, step, 0)).random()
        if drawn >= styles.probability:
            return None
        rngs = self._rngs(_STYLE, step, len(images))
        bands = len(self.model.config.bands)
        singles = zip(torch.split(images[:, :bands], 1), rngs, strict=True)
        styled = torch.cat([restyle(image, rng) for image, rng in singles])
        return torch.cat([styled, images[:, bands:]], dim=1)

    def _rngs(self, use: int, step: int, count: int) -> list[np.random.Generator]:
        """Return a generator for each of ``count`` images of this process."""
        places = range(self.global_rank * count, (self.global_rank + 1) * count)
        return [np.random.default_rng((self.recipe.seed, use, step, place)) for place in places]

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """All that may ever train, by name: of the model, and of what only training needs."""
        beside = {} if self.beside is None else dict(self.beside.named_parameters(prefix="beside"))
        return self.tuner.parameters | beside

    def on_train_batch_end(self, *_: Any) -> None:
        """Let the teacher follow, then tell."""
        if self._teacher is not None:
            self._teacher.follow()
        self.seconds += time.perf_counter() - self._since
        self.after_step(self.trainer.global_step)
        self._since = time.perf_counter()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what training changes; the rest comes with the model."""
        trained = set(map(id, self.trained.values()))
        frozen = {name for name, p in self.named_parameters() if id(p) not in trained}
        weights = checkpoint["state_dict"]
        checkpoint["state_dict"] = {k: v for k, v in weights.items() if k not in frozen}
        checkpoint["earthgate"] = {
            "about": self.about,
            "losses": self.losses,
            "seconds": self.seconds,
            "seconds_selecting": self.seconds_selecting,
            "tuner": self.tuner.state(),
            "teacher": self._teacher and self._teacher.state(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over what ``on_save_checkpoint`` kept; some of it waits for the device.

        Raises:
            InputError: It is the state of another run.
        """
        self._resumed = state = checkpoint["earthgate"]
        before, now = _flat(state["about"]), _flat(self.about)
        for key in sorted(now.keys() | before.keys()):
            if before.get(key) != now.get(key):
                raise InputError(
                    found=f"an unfinished run with {key} {before.get(key)}",
                    expected=f"{now.get(key)}",
                    fix="Pass --no-resume to discard it, or give another --out",
                )
        self.losses = state["losses"]
        self.seconds, self.seconds_selecting = state["seconds"], state["seconds_selecting"]

    def _seed(self, step: int) -> None:
        entropy = np.random.SeedSequence((self.recipe.seed, step, self.global_rank))
        torch.manual_seed(int(entropy.generate_state(1)[0]))

    def _groups(self) -> list[dict[str, Any]]:
        """Return the optimiser's groups: backbone or not, decayed or not."""
        undecayed = {
            id(parameter)
            for module in self.modules()
            for name, parameter in module.named_parameters(recurse=False)
            if isinstance(module, _UNDECAYED) or name == "level_embed"
        }
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for name, parameter in self.trained.items():
            place = (name.startswith("backbone."), id(parameter) in undecayed)
            groups.setdefault(place, []).append(parameter)
        recipe = self.recipe
        return [
            {
                "params": parameters,
                "lr": recipe.learning_rate * (recipe.backbone_share if in_backbone else 1.0),
                "weight_decay": 0.0 if plain else recipe.weight_decay,
            }
            for (in_backbone, plain), parameters in groups.items()
        ]

    def _steps(self) -> Steps:
        trainer = self.trainer
        return self._steps_of(trainer.global_step, trainer.global_rank, trainer.world_size)

    def _mean(self, values: Tensor) -> Tensor:
        """Return the mean over all processes."""
        if self.trainer.world_size == 1:
            return values
        joined = self.trainer.strategy.reduce(values.to(self.device), reduce_op="mean")
        return cast("Tensor", joined).to(values.device)

    def _teaching(self, step: int) -> Teacher | None:
        """Return the teacher once it is time for pseudo-labels."""
        dacs = self.recipe.dacs
        begun = dacs is not None and step >= dacs.start * self.recipe.steps
        return self._teacher if begun else None

    def _single_losses(self, step: int) -> list[Callable[[], Tensor]]:
        """Return the losses of the single images that a choice of modules rests on."""
        count, teacher = self.tuner.images, self._teaching(step)
        if count == 0:
            return []
        images, masks = self._coming(step, count, "source" if teacher is None else "target")
        losses: list[Callable[[], Tensor]] = []
        for image, mask in zip(torch.split(images, 1), torch.split(masks, 1), strict=True):
            if teacher is None:
                losses.append(partial(self.loss, image, mask))
            else:
                pseudo = teacher.label(image, mask)
                losses.append(partial(self.loss, image, pseudo.labels, pseudo.weights))
        return losses

    def _coming(self, step: int, count: int, domain: str) -> tuple[Tensor, Tensor]:
        """Return images of the coming steps and their labels, or where a target's are valid."""
        steps = self._steps()
        images: list[Tensor] = []
        masks: list[Tensor] = []
        while sum(map(len, images)) < count:
            batch = steps.batch(step + len(images))
            target = (batch["target"], batch["target_valid"])
            image, mask = target if domain == "target" else batch["source"]
            images.append(image)
            masks.append(mask)
        return torch.cat(images)[:count].to(self.device), torch.cat(masks)[:count].to(self.device)


def _flat(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values under names joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in document.items():
        flat |= (
            _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return flat
