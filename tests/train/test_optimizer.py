"""Muon beside AdamW: which parameters get which, and that a run with both goes on bit for bit."""

from __future__ import annotations

import pytest
import torch
from test_train import Stopped, ball, run, same, small_config, stop_at

from fastshape import train
from fastshape.models import SparseStructureVAE, VecSetVAE
from fastshape.train.checkpoint import CHECKPOINT_FILE
from fastshape.train.optimizer import Joined, make_optimizer


@pytest.fixture(scope="module")
def samples():
    return [ball(0.7), ball(0.5, seed=1)]


def test_matrices_of_the_layers_are_muon_s():
    config = small_config(optimizer="muon")
    model = VecSetVAE(config.model)
    optimizer = make_optimizer(model, config)
    assert isinstance(optimizer, Joined)
    muon, adam = optimizer.parts
    assert isinstance(muon, torch.optim.Muon)
    assert isinstance(adam, torch.optim.AdamW)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    matrices = {names[id(p)] for p in muon.param_groups[0]["params"]}
    others = {names[id(p)] for p in adam.param_groups[0]["params"]}
    assert matrices | others == set(names.values())
    assert not matrices & others
    assert any("to_q.weight" in name for name in matrices)
    assert any("proj_in.weight" in name for name in matrices)
    assert not any("point_embed" in name or "to_mean" in name or "bias" in name for name in matrices)


def test_a_step_is_that_of_each_alone(samples):
    config = small_config(optimizer="muon", weight_decay=0.1)
    torch.manual_seed(0)
    model, alone = VecSetVAE(config.model), VecSetVAE(config.model)
    alone.load_state_dict(model.state_dict())
    optimizer = make_optimizer(model, config)
    muon, adam = make_optimizer(alone, config).parts
    for step in range(2):
        for mine, theirs in zip(model.parameters(), alone.parameters(), strict=True):
            mine.grad = torch.randn(mine.shape, generator=torch.Generator().manual_seed(step))
            theirs.grad = mine.grad.clone()
        optimizer.step()
        muon.step()
        adam.step()
    assert same(model, alone)
    matrix = optimizer.param_groups[0]["params"][0]
    assert set(optimizer.state[matrix]) == {"momentum_buffer"}


def test_a_run_goes_on_bit_for_bit(samples, tmp_path):
    config = small_config(optimizer="muon", ema_decay=0.9)
    whole = run(config, samples)
    with pytest.raises(Stopped):
        run(config, samples, output_dir=tmp_path, on_step=stop_at(13))
    assert (tmp_path / CHECKPOINT_FILE).exists()
    assert same(whole, run(config, samples, output_dir=tmp_path))
    assert not same(whole, run(small_config(ema_decay=0.9), samples))


def test_it_learns(samples):
    losses = []
    config = small_config(optimizer="muon", steps=60, learning_rate=1e-2)
    run(config, samples, on_step=lambda step, metrics: losses.append(metrics["loss"]))
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


def test_what_has_no_layers_or_no_name_is_refused():
    with pytest.raises(ValueError, match="`optimizer` must be one of adamw, muon, got 'sgd'"):
        small_config(optimizer="sgd")
    config = train.recipes.get("structure-tiny").override(["optimizer=muon"])
    with pytest.raises(ValueError, match="`optimizer` 'muon' needs layers of attention, SparseStructureVAE"):
        make_optimizer(SparseStructureVAE(config.model), config)
