"""Recipes: functions that return the configuration of a run: small ones for a CPU, the published ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

from fastshape.models import (
    VAT,
    DoraConfig,
    DoraVAE,
    LaGeM,
    LaGeMConfig,
    NextScaleConfig,
    NextScaleTransformer,
    SparseStructureConfig,
    SparseStructureVAE,
    VATConfig,
    VecSetConfig,
    VecSetVAE,
)
from fastshape.train.config import RunConfig, StructureTrainConfig, TokenTrainConfig, TrainConfig


def vecset_single() -> TrainConfig:
    """Fits a small VecSet autoencoder to one shape, or a handful, in about a minute of one CPU core.

    It OVERFITS by design: the model knows the shapes that it was trained on and no others. With k shapes give
    it more steps, up to k times as many.

    What makes it learn fast, beside its size: sixteen heads in the cross-attentions instead of one, the
    feed-forward layer after the query cross-attention, near queries that weigh as much as the volume's, and
    decoding the mode of the posterior, not samples.
    """
    return TrainConfig(
        model=VecSetConfig(
            dim=64,
            depth=2,
            heads=2,
            head_dim=32,
            cross_heads=16,
            num_latents=64,
            num_inputs=1024,
            latent_dim=16,
            decoder_feed_forward=True,
            drop_path=0.0,
        ),
        steps=1200,
        volume_queries=512,
        near_queries=1536,
        near_weight=1.0,
        kl_weight=1e-4,
        sample_posterior=False,
        learning_rate=3e-3,
        warmup_steps=50,
        gradient_clip=1.0,
        num_threads=1,
    )


def vecset_tiny() -> TrainConfig:
    """The shipped VecSet model: 1.6 M parameters, trained on two thousand shapes on one CPU core.

    Beside its size it differs from the paper as `vecset_single` does, in that every step has another number
    of tokens, and in that the field is a truncated signed distance, asked near sharp edges too: in so few
    steps occupancy is hardly learned.
    """
    return TrainConfig(
        model=VecSetConfig(
            dim=128,
            depth=4,
            heads=4,
            head_dim=32,
            cross_heads=4,
            num_latents=512,
            num_inputs=1024,
            latent_dim=32,
            decoder_feed_forward=True,
            drop_path=0.0,
            output="tsdf",
            truncation=0.05,
        ),
        **_TINY,
    )


def dora_tiny() -> TrainConfig:
    """The shipped Dora model: 1.6 M parameters, trained on two thousand shapes on one CPU core.

    The field saturates at a distance of 0.05, three times the paper's: the model is as much coarser.
    """
    return TrainConfig(
        model=DoraConfig(
            dim=128,
            heads=4,
            encoder_depth=1,
            depth=4,
            latent_dim=32,
            num_latents=512,
            num_inputs=1024,
            truncation=0.05,
        ),
        **_TINY,
    )


def lagem_tiny() -> TrainConfig:
    """The shipped LaGeM model: 1.8 M parameters on three levels, trained as the other two.

    The paper's field is occupancy, its queries balanced; here it is a truncated signed distance.
    """
    return TrainConfig(
        model=LaGeMConfig(
            dim=112,
            heads=4,
            head_dim=28,
            num_latents=(512, 128, 32),
            latent_dims=(16, 32, 64),
            depths=(1, 1, 1),
            num_inputs=1024,
            output="tsdf",
            truncation=0.05,
        ),
        **_TINY,
    )


def vat_tiny() -> TrainConfig:
    """The shipped VAT model: 1.5 M parameters, trained on two thousand shapes on one CPU core in two stages.

    256 latents, ten scales, 680 tokens of 11 bits. The paper's field is occupancy; here it is a truncated
    signed distance, as with the other small models, and far points weigh more: the coarse shape is what it
    learns in so few steps.
    """
    return TrainConfig(
        model=VATConfig(
            dim=128,
            heads=4,
            encoder_depth=2,
            depth=2,
            num_latents=256,
            latent_dim=16,
            num_inputs=1024,
            plane_size=8,
            channels=(64, 48, 32),
            plane_dim=16,
            mlp_dim=64,
            num_codes=2048,
            output="tsdf",
            truncation=0.05,
        ),
        **{
            **_TINY,
            "steps": 8000,
            "batch_size": 4,
            "continuous_share": 0.3,
            "revive_every": 100,
            "optimizer": "muon",
            "bfloat16": True,
            "volume_queries": 768,
            "near_queries": 512,
            "sharp_near_queries": 256,
            "volume_weight": 1.0,
            "near_weight": 0.3,
            "sharp_near_weight": 0.3,
            "kl_weight": 1e-6,
            "validate_every": 1000,
            "token_counts": (),
            "token_probabilities": (),
            "token_warmup": 0.0,
        },
    )


_TINY: dict[str, Any] = {
    "steps": 3600,
    "volume_queries": 256,
    "near_queries": 384,
    "sharp_near_queries": 384,
    "volume_weight": 0.5,
    "near_weight": 0.5,
    "sharp_near_weight": 1.0,
    "kl_weight": 1e-4,
    "augment": "axes",
    "batch_size": 8,
    "token_counts": (64, 128, 256, 512),
    "token_probabilities": (0.3, 0.4, 0.2, 0.1),
    "token_warmup": 0.2,
    "initialization": "kernel",
    "learning_rate": 1.2e-3,
    "final_learning_rate": 2e-5,
    "warmup_steps": 100,
    "gradient_clip": 1.0,
    "ema_decay": 0.998,
    "checkpoint_every": 250,
    "validate_every": 500,
    "num_threads": 1,
}


def _vecset(name: str) -> TrainConfig:
    """A published VecSet size, by the official code: batch 512 in all, learning rate 2e-4.

    The steps are 200 epochs, 5 of them warm-up, of 16 passes each over a ShapeNet-v2 training split of about
    48,600 shapes.
    """
    steps_per_epoch = 16 * 48_600 // 512
    return TrainConfig(
        model=VecSetVAE.configs[name],
        steps=200 * steps_per_epoch,
        batch_size=512,
        learning_rate=2e-4,
        warmup_steps=5 * steps_per_epoch,
        augment="vecset",
    )


def _dora(name: str) -> TrainConfig:
    """A published Dora size, by the official code and its token table.

    Its configuration goes on from released weights at a constant rate of 1e-5: give those as `initial`. It
    does not say how long; the steps here are ours, and so is that the table opens over their first tenth,
    which follows its advice to begin with few tokens. It trains in mixed precision; bfloat16 is its advice.
    """
    return TrainConfig(
        model=DoraVAE.configs[name],
        steps=100_000,
        batch_size=64,
        volume_queries=10_000,
        near_queries=10_000,
        sharp_near_queries=21_384,
        volume_weight=0.5,  # one mean over volume and near
        near_weight=0.5,
        sharp_near_weight=2.0,
        token_counts=(256, 512, 768, 1024, 1280, 2048, 4096),
        token_probabilities=(0.1, 0.1, 0.1, 0.1, 0.1, 0.3, 0.2),
        token_warmup=0.1,
        learning_rate=1e-5,
        final_learning_rate=1e-5,
        betas=(0.9, 0.99),
        adam_eps=1e-6,
        augment="dora",
        bfloat16=True,
    )


def _lagem(name: str, shapes: int) -> TrainConfig:
    """A published LaGeM size, by the official code: batch 256 in all, 500 epochs, one of them warm-up.

    The code that is published is that of Objaverse; of ShapeNet the paper gives the sizes alone.
    """
    steps_per_epoch = shapes // 256
    return TrainConfig(
        model=LaGeM.configs[name],
        steps=500 * steps_per_epoch,
        batch_size=256,
        balanced=True,
        learning_rate=5e-5,
        warmup_steps=steps_per_epoch,
        gradient_clip=1.0,
        augment="lagem",
        bfloat16=True,
    )


def _vat(name: str) -> TrainConfig:
    """A published VAT size: batch 256, 200,000 steps of continuous latents and 100,000 of quantized ones.

    Warm-up, weight decay and clipping are ours; one cosine goes over both stages.
    """
    return TrainConfig(
        model=VAT.configs[name],
        steps=300_000,
        continuous_share=2 / 3,
        batch_size=256,
        volume_queries=20_000,
        near_queries=20_000,
        volume_weight=0.5,  # one mean over volume and near
        near_weight=0.5,
        kl_weight=1e-4,
        vq_weight=0.2,
        learning_rate=1e-4,
        warmup_steps=5000,
        betas=(0.9, 0.99),
        gradient_clip=1.0,
        ema_decay=0.99,
        bfloat16=True,
    )


def structure_tiny() -> StructureTrainConfig:
    """The shipped structure model: grids of 64^3 to 16^3 latents of 8 channels, trained on a CPU core.

    It sees cubes of half the side, and every symmetry of the cube. The paper's weight of the KL divergence is
    kept; its model has eighty times the parameters.
    """
    return StructureTrainConfig(
        model=SparseStructureConfig(channels=(16, 32, 64), num_res_blocks=1, num_res_blocks_middle=1),
        steps=2000,
        batch_size=8,
        crop=32,
        learning_rate=3e-3,
        final_learning_rate=3e-5,
        warmup_steps=50,
        weight_decay=0.0,
        gradient_clip=1.0,
        ema_decay=0.995,
        augment="axes",
        checkpoint_every=250,
        validate_every=500,
        num_threads=1,
    )


def _structure(name: str) -> StructureTrainConfig:
    """The published structure model, by its code's configuration: batch 4 on each of 8 GPUs, 1 M steps.

    Its learning rate is constant, and its gradients are clipped at their own 95th percentile, which here is
    a largest norm of 1. It trains in half precision; here that is bfloat16.
    """
    return StructureTrainConfig(
        model=SparseStructureVAE.configs[name],
        steps=1_000_000,
        batch_size=32,
        loss="dice",
        kl_weight=1e-3,
        learning_rate=1e-4,
        final_learning_rate=1e-4,
        weight_decay=0.0,
        gradient_clip=1.0,
        ema_decay=0.9999,
        bfloat16=True,
    )


def vat_tiny_ar() -> TokenTrainConfig:
    """The shipped generator: 1.7 M parameters that say the tokens of `vat-tiny`, without a condition.

    Most steps are about the first scales, which decide the shape: the last two have six tenths of the tokens.
    """
    tokenizer = vat_tiny().model
    assert isinstance(tokenizer, VATConfig)
    return TokenTrainConfig(
        model=NextScaleConfig(
            scales=tokenizer.all_scales,
            vocab_size=tokenizer.num_codes,
            code_dim=tokenizer.latent_dim,
            dim=128,
            depth=6,
            heads=4,
            shared_modulation=True,
        ),
        variants=2,
        scale_counts=(6, 8, 10),
        scale_probabilities=(0.4, 0.3, 0.3),
        steps=1500,
        batch_size=8,
        optimizer="muon",
        bfloat16=True,
        learning_rate=4e-3,
        final_learning_rate=2e-5,
        warmup_steps=100,
        weight_decay=0.05,
        betas=(0.9, 0.95),
        gradient_clip=2.0,
        ema_decay=0.995,
        checkpoint_every=250,
        validate_every=500,
        num_threads=1,
    )


def _vat_ar(name: str) -> TokenTrainConfig:
    """A published size of VAT's second stage: batch 1600, on 96 GPUs for a week.

    How many steps that were is not said; these are ours, as are warm-up, weight decay and clipping, and how
    often conditions are left out. These come from `--conditions`.
    """
    return TokenTrainConfig(
        model=NextScaleTransformer.configs[name],
        steps=200_000,
        batch_size=1600,
        learning_rate=1e-4,
        warmup_steps=5000,
        weight_decay=0.05,
        betas=(0.9, 0.99),
        gradient_clip=2.0,
        bfloat16=True,
    )


RECIPES: Mapping[str, Callable[[], RunConfig]] = MappingProxyType(
    {
        "vecset-single": vecset_single,
        "vecset-tiny": vecset_tiny,
        "dora-tiny": dora_tiny,
        "lagem-tiny": lagem_tiny,
        "vat-tiny": vat_tiny,
        "structure-tiny": structure_tiny,
        **{f"vecset-{name.replace('_', '-')}": partial(_vecset, name) for name in VecSetVAE.configs},
        **{f"dora-{name}": partial(_dora, name) for name in DoraVAE.configs},
        "lagem-objaverse": partial(_lagem, "objaverse", 600_000),
        "lagem-shapenet": partial(_lagem, "shapenet", 48_600),
        **{f"vat-{name.replace('_', '-')}": partial(_vat, name) for name in VAT.configs},
        "vat-tiny-ar": vat_tiny_ar,
        **{f"{name}-ar": partial(_vat_ar, name) for name in ("vat", "vat-0.5b")},
        **{f"structure-{name}": partial(_structure, name) for name in SparseStructureVAE.configs},
    }
)


def get(name: str) -> RunConfig:
    """The recipe of that name."""
    recipe = RECIPES.get(name)
    if recipe is None:
        raise ValueError(f"there is no recipe {name!r}; there are {', '.join(RECIPES)}")
    return recipe()
