"""Recipes: functions that return a `TrainConfig`."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType

from fastshape.models import VecSetConfig, VecSetVAE
from fastshape.train.config import TrainConfig


def vecset_tiny() -> TrainConfig:
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


def vecset_kl_d512_m512_l8() -> TrainConfig:
    """The released KL autoencoder's recipe, from the official code: batch 512 in all, learning rate 2e-4.

    The steps are 200 epochs, 5 of them warm-up, of 16 passes each over a ShapeNet-v2 training split of about
    48,600 shapes.
    """
    steps_per_epoch = 16 * 48_600 // 512
    return TrainConfig(
        model=VecSetVAE.configs["kl_d512_m512_l8"],
        steps=200 * steps_per_epoch,
        batch_size=512,
        learning_rate=2e-4,
        warmup_steps=5 * steps_per_epoch,
        augment=True,
    )


RECIPES = MappingProxyType(
    {"vecset-tiny": vecset_tiny, "vecset-kl-d512-m512-l8": vecset_kl_d512_m512_l8},
)


def get(name: str) -> TrainConfig:
    """The recipe of that name."""
    recipe: Callable[[], TrainConfig] | None = RECIPES.get(name)
    if recipe is None:
        raise ValueError(f"there is no recipe {name!r}; there are {', '.join(RECIPES)}")
    return recipe()
