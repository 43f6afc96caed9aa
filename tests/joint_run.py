"""Train with self-training, in one process or in two, and write the weights.

Arguments: the folder to write ``<policy>.<rank>.npz`` to, and the number of processes. The batches
of all processes together are the same. Lightning starts this program anew for the second process.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from networks import small_segmenter
from steps import ColourSteps

from earthgate_geo.data.style import StatisticsStyle, StyleInjector, build_bank
from earthgate_geo.monitor import SilentMonitor
from earthgate_geo.policies import Tuner
from earthgate_geo.recipe import Dacs, MultiTask, Policy, Recipe, Selection, Styles
from earthgate_geo.toolbox.base import ToolboxConfig
from earthgate_geo.training.fit import FitOptions, fit

JOINT_BATCH = 4


CHOICES = {Policy.GATE: 3, Policy.RANDOM_K: 1}
"""Steps between two choices; random ones close modules and open them again."""


def train(folder: Path, devices: int, policy: Policy) -> None:
    batch = JOINT_BATCH // devices
    recipe = Recipe(
        steps=6,
        batch=batch,
        target_batch=batch,
        crop_px=32,
        learning_rate=1e-3,
        policy=policy,
        selection=Selection(interval=CHOICES[policy], images=batch),
        dacs=Dacs(start=0.5, aligned=True),
    )
    injector = None
    if policy is Policy.RANDOM_K:  # all source images styled, and half of each hidden, too
        styles = Styles(probability=1, strength=0.5, block_px=8)
        recipe = replace(recipe, styles=styles, multitask=MultiTask(masked=0.5, block_px=8))
        seen = torch.rand(20, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        bank = build_bank(StatisticsStyle(), seen)
        injector = StyleInjector(bank.style(), bank, styles)
    model = small_segmenter()
    sizes = ToolboxConfig(rank=4, bottleneck=4, frequency_bottleneck=4)
    tuner = Tuner(
        model, recipe.policy, selection=recipe.selection, seed=0, sizes=sizes, batch=batch
    )
    ranks = []

    def steps_of(first: int, rank: int, count: int) -> ColourSteps:
        ranks.append(rank)
        return ColourSteps(first, rank, count, batch_size=batch)

    options = FitOptions(devices=devices, injector=injector)
    record = fit(model, tuner, steps_of, recipe, monitor=SilentMonitor(), options=options)
    weights = {key: value.numpy() for key, value in model.state_dict().items()}
    np.savez(
        folder / f"{policy}.{ranks[0]}.npz",
        losses=record.losses,
        history=[[str(slot) for slot in slots] for slots in tuner.history],
        **weights,
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    for chosen in CHOICES:
        train(Path(sys.argv[1]), int(sys.argv[2]), chosen)
