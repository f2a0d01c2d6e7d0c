"""Next-scale autoregression: the tokens of a shape, a scale at a time, each from all the coarser ones.

Zhang et al.: "3D representation in 512-Byte: Variational tokenizer is the key for autoregressive 3D
generation" (VAT, arXiv 2412.02202), section 3.3 and appendix 6.3.3; the transformer is that of Tian et al.:
"Visual Autoregressive Modeling" (VAR, NeurIPS 2024) by its released code, whose weights load.

    c = what is known: a learned start, a class's embedding, W text                                  (B, dim)
    scale 0:  c + start_position                                                                (B, L_0, dim)
    scale s:  W (the sum of the codes so far, brought to the L_s tokens)                        (B, L_s, dim)
    x = these + position + scale_embed; before them the image, if it is a prefix: W tokens + image_position
    per block: attention over this scale and those before, MLP, modulated by c (`nn.ScaleBlock`)
    logits = W (norm(x) (1 + scale) + shift), (scale, shift) = W silu(c)                         (B, L, vocab)

The paper leaves open how the image takes part beside being "concatenated": here its tokens see only one
another, and have learned positions; `cond_mode="cross"` has them in cross-attention instead, as SAR3D does.
Text and image are left out at random in training, each for itself, for a learned stand-in.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from fastshape.models.pretrained import ModelConfig, PretrainedModel
from fastshape.models.token_sampling import PLAIN, Sampling, draw_tokens, guide, keep_likely
from fastshape.nn import Generators, KeyValueCache, ScaleBlock


def _squares(*sides: int) -> tuple[int, ...]:
    return tuple(side * side for side in sides)


VAT_SCALES = _squares(1, 2, 3, 4, 5, 6, 8, 10, 13, 16, 24, 32)
"""Of VAT with 1024 latents; the paper prints 196 for 256, which its tokenizers of 256 latents end with."""


@dataclass(frozen=True)
class NextScaleConfig(ModelConfig):
    """Sizes of a `NextScaleTransformer`; the defaults are VAT's, without conditions.

    Attributes:
        scales: tokens of each scale, coarse to fine.
        vocab_size: codes of the tokenizer's codebook.
        code_dim: components of a code.
        dim: channels.
        depth: blocks.
        heads: attention heads.
        mlp_ratio: channels within the MLP, as a multiple of `dim`.
        qk_norm: unit vectors as queries and keys, see `nn.ScaleAttention`.
        shared_modulation: one modulation for all blocks, which add an offset; False: each has its own.
        norm_eps: of the norms.
        drop_path: probability of the last block's `DropPath`, growing linearly from 0 at the first.
        num_classes: of class labels; 0: there are none.
        text_dim: channels of a pooled embedding of text; 0: there is none.
        image_dim, image_tokens: channels and number of an image's tokens; 0: there are none.
        cond_mode: how the image takes part: "prefix" or "cross".
        drop_condition: how often in training class, text and image are left out, each for itself.
    """

    scales: tuple[int, ...] = VAT_SCALES
    vocab_size: int = 16384
    code_dim: int = 16
    dim: int = 1280
    depth: int = 12
    heads: int = 20
    mlp_ratio: float = 4.0
    qk_norm: bool = True
    shared_modulation: bool = False
    norm_eps: float = 1e-6
    drop_path: float = 0.0
    num_classes: int = 0
    text_dim: int = 0
    image_dim: int = 0
    image_tokens: int = 0
    cond_mode: str = "prefix"
    drop_condition: float = 0.1

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", tuple(self.scales))  # JSON has lists
        if not self.scales or min(self.scales) < 1:
            raise ValueError(f"`scales` must have a positive number for each scale, got {self.scales}")
        for name in ("vocab_size", "code_dim", "dim", "heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}")
        for name in ("depth", "num_classes", "text_dim", "image_dim", "image_tokens"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must not be negative, got {getattr(self, name)}")
        if self.dim % self.heads:
            raise ValueError(f"`heads` must divide `dim`, got {self.heads} and {self.dim}")
        if not self.mlp_ratio > 0:
            raise ValueError(f"`mlp_ratio` must be positive, got {self.mlp_ratio}")
        if bool(self.image_dim) != bool(self.image_tokens):
            raise ValueError(
                "`image_dim` and `image_tokens` must both be 0 or both be positive, "
                f"got {self.image_dim} and {self.image_tokens}"
            )
        if self.cond_mode not in ("prefix", "cross"):
            raise ValueError(f"`cond_mode` must be 'prefix' or 'cross', got {self.cond_mode!r}")
        for name in ("drop_path", "drop_condition"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"`{name}` must be in [0, 1), got {getattr(self, name)}")

    @property
    def num_tokens(self) -> int:
        """Of all scales."""
        return sum(self.scales)

    @property
    def bounds(self) -> list[tuple[int, int]]:
        """Where the tokens of each scale begin and end."""
        ends = [0, *itertools.accumulate(self.scales)]
        return list(itertools.pairwise(ends))

    @property
    def conditions(self) -> list[str]:
        """What it can be told: "classes", "text", "image"."""
        there = {"classes": self.num_classes, "text": self.text_dim, "image": self.image_dim}
        return [name for name, size in there.items() if size]


class Condition(NamedTuple):
    """What is known of the shapes of a batch; None, what is not.

    Attributes:
        classes: (B,) int64; -1 where it is not known.
        text: (B, text_dim), pooled embeddings; a row of NaN where it is not known.
        image: (B, image_tokens, image_dim); NaN throughout where it is not known.
    """

    classes: Tensor | None = None
    text: Tensor | None = None
    image: Tensor | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> Condition:
        """The same with every tensor changed."""
        return Condition(*(None if tensor is None else change(tensor) for tensor in self))


NOTHING = Condition()


class ScaleQuantizer(Protocol):
    """What generating needs of a tokenizer's quantizer, `nn.MultiscaleQuantizer` say."""

    def next_input(self, accumulated: Tensor | None, codes: Tensor, scale: int) -> tuple[Tensor, Tensor]:
        """The sum with the codes (B, L_s) of one more scale, and that sum brought to the next scale's tokens,
        (B, L_{s+1}, code_dim)."""
        ...


class _Told(NamedTuple):
    """What a batch is told, as the layers take it."""

    vector: Tensor  # (B, dim)
    modulation: Tensor  # as of `ScaleBlock.forward`
    image: Tensor | None  # (B, image_tokens, dim)
    contexts: list[tuple[Tensor, Tensor] | None]  # of each block's cross-attention


class NextScaleTransformer(PretrainedModel):
    """Logits of a shape's tokens, and shapes drawn from them.

    It knows nothing of shapes: a tokenizer makes the tokens, and takes them back.

    Example:
        >>> model = NextScaleTransformer(NextScaleTransformer.configs["vat"]).eval()
        >>> logits = model(tokenizer.quantizer.scale_inputs(tokens))    # tokens (B, L) -> (B, L, vocab)
        >>> tokens = model.generate(tokenizer.quantizer, seeds=[0, 1], sampling=Sampling(top_k=900))
    """

    Config = NextScaleConfig
    configs: ClassVar[Mapping[str, NextScaleConfig]] = MappingProxyType(
        {
            # The paper lists 12 blocks, and speaks of 0.5 billion parameters, which 16 have.
            "vat": NextScaleConfig(text_dim=768, image_dim=1024, image_tokens=257),
            "vat-0.5b": NextScaleConfig(depth=16, text_dim=768, image_dim=1024, image_tokens=257),
            **{
                f"var-d{depth}": NextScaleConfig(
                    scales=_squares(1, 2, 3, 4, 6, 9, 13, 18, 24, 32)
                    if depth == 36
                    else _squares(1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
                    vocab_size=4096,
                    code_dim=32,
                    dim=64 * depth,
                    depth=depth,
                    heads=depth,
                    shared_modulation=depth == 36,
                    drop_path=0.1 * depth / 24,
                    num_classes=1000,
                )
                for depth in (16, 20, 24, 30, 36)
            },
        }
    )

    config: NextScaleConfig

    def __init__(self, config: NextScaleConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        self.start = None if config.num_classes or config.text_dim else nn.Parameter(torch.empty(dim))
        self.class_embed = nn.Embedding(config.num_classes + 1, dim) if config.num_classes else None
        self.text_embed = nn.Linear(config.text_dim, dim) if config.text_dim else None
        self.no_text = nn.Parameter(torch.empty(dim)) if config.text_dim else None
        self.image_embed = nn.Linear(config.image_dim, dim) if config.image_dim else None
        self.no_image = nn.Parameter(torch.empty(dim)) if config.image_dim else None
        self.image_position = (
            nn.Parameter(torch.empty(config.image_tokens, dim)) if config.image_dim else None
        )
        self.code_embed = nn.Linear(config.code_dim, dim)
        self.start_position = nn.Parameter(torch.empty(config.scales[0], dim))
        self.position = nn.Parameter(torch.empty(config.num_tokens, dim))
        self.scale_embed = nn.Embedding(len(config.scales), dim)
        self.shared_modulation = nn.Linear(dim, 6 * dim) if config.shared_modulation else None
        self.blocks = nn.ModuleList(
            ScaleBlock(
                dim,
                config.heads,
                round(config.mlp_ratio * dim),
                qk_norm=config.qk_norm,
                eps=config.norm_eps,
                shared=config.shared_modulation,
                cross=bool(config.image_dim) and config.cond_mode == "cross",
                drop_path=config.drop_path * layer / max(config.depth - 1, 1),
            )
            for layer in range(config.depth)
        )
        self.head_norm = nn.LayerNorm(dim, eps=config.norm_eps, elementwise_affine=False)
        self.head_modulation = nn.Linear(dim, 2 * dim)
        self.head = nn.Linear(dim, config.vocab_size)
        self._initialize()

    @torch.no_grad()
    def _initialize(self) -> None:
        """As VAR's released code: at first the blocks hardly change x, and all codes are about as likely."""
        std = math.sqrt(1.0 / (3.0 * self.config.dim))
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.zero_()
        alone = (self.start, self.no_text, self.no_image, self.image_position)
        for parameter in (*alone, self.start_position, self.position):
            if parameter is not None:
                nn.init.trunc_normal_(parameter, std=std)
        self.head.weight.mul_(0.02)
        self.head_modulation.weight.mul_(0.5)
        gates = 2 * self.config.dim
        for block in self.blocks:
            assert isinstance(block, ScaleBlock)
            outputs = [block.attention.to_out, block.mlp_out]
            if block.cross_attention is not None:
                outputs.append(block.cross_attention.to_out)
            for output in outputs:
                output.weight.div_(math.sqrt(2.0 * self.config.depth))
            rows = block.offset.flatten() if block.modulation is None else block.modulation.weight  # type: ignore[union-attr]
            rows[:gates].mul_(1e-5)
            rows[gates:].mul_(0.5)

    # ---- Training ------------------------------------------------------------------------------------------

    def forward(
        self, inputs: Tensor, condition: Condition = NOTHING, *, generator: Generators | None = None
    ) -> Tensor:
        """The logits of every token, each scale told the true coarser ones (teacher forcing).

        Args:
            inputs: (B, T - L_0, code_dim), what each scale but the first sees of those before it: the
                quantizer's `scale_inputs` of the true tokens, T of all scales or of the first of them.
            condition: of the shapes. In training each part is left out with probability `drop_condition`.
            generator: draws that, on the CPU: one, or one for each of the B shapes; None is torch's global
                one.

        Returns:
            Logits (B, T, vocab_size); those of the first scales are the same without the others.

        Raises:
            ValueError: a wrong shape, or a condition that the model does not take.
        """
        scales = self._scales_of(inputs)
        batch = inputs.shape[0]
        self._check(condition, batch)
        told = self._tell(condition, batch, self._dropped(batch, generator))
        x = torch.cat([told.vector[:, None] + self.start_position, self.code_embed(inputs)], 1)
        x = x + self._places()[: x.shape[1]]
        prefix = 0
        if told.image is not None:
            prefix = told.image.shape[1]
            x = torch.cat([told.image, x], 1)
        x = self._blocks(x, told, [prefix, *scales])
        return self._logits(x[:, prefix:], told.vector)

    def _scales_of(self, inputs: Tensor) -> tuple[int, ...]:
        """The scales that teacher forcing is about."""
        config = self.config
        counts = [end - config.scales[0] for _, end in config.bounds]
        if inputs.dim() != 3 or inputs.shape[2] != config.code_dim or inputs.shape[1] not in counts:
            raise ValueError(
                f"`inputs` must have shape (B, {counts[-1]}, {config.code_dim}), or one of {counts} rows "
                f"for the first scales; got {tuple(inputs.shape)}"
            )
        return config.scales[: counts.index(inputs.shape[1]) + 1]

    def _dropped(self, batch: int, generator: Generators | None) -> dict[str, Tensor]:
        """Which shapes (B,) bool are not told what; nothing in evaluation."""
        names, probability = self.config.conditions, self.config.drop_condition
        if not self.training or probability == 0.0 or not names:
            return {}
        if generator is None or isinstance(generator, torch.Generator):
            drawn = torch.rand(batch, len(names), generator=generator)
        else:
            drawn = torch.stack([torch.rand(len(names), generator=one) for one in generator])
        return dict(zip(names, (drawn < probability).unbind(1), strict=True))

    def _tell(
        self, condition: Condition, batch: int, dropped: Mapping[str, Tensor] = MappingProxyType({})
    ) -> _Told:
        device = self.position.device
        none = torch.zeros(batch, dtype=torch.bool)
        without = {name: dropped.get(name, none).to(device) for name in ("classes", "text", "image")}
        parts: list[Tensor] = []
        if self.class_embed is not None:
            unknown = self.config.num_classes
            classes = condition.classes
            classes = torch.full((batch,), -1, device=device) if classes is None else classes
            parts.append(self.class_embed(torch.where((classes < 0) | without["classes"], unknown, classes)))
        if self.text_embed is not None:
            assert self.no_text is not None
            no_text = self.no_text.expand(batch, -1)
            if condition.text is None:
                parts.append(no_text)
            else:
                text, untold = _known(condition.text)
                hidden = (untold | without["text"])[:, None]
                parts.append(torch.where(hidden, no_text, self.text_embed(text)))
        if self.start is not None:
            parts.append(self.start.expand(batch, -1))
        vector = sum(parts[1:], parts[0])
        image = None
        if self.image_embed is not None:
            assert self.no_image is not None
            assert self.image_position is not None
            image = self.no_image.expand(batch, self.config.image_tokens, -1)
            if condition.image is not None:
                pictures, untold = _known(condition.image)
                hidden = (untold | without["image"])[:, None, None]
                image = torch.where(hidden, image, self.image_embed(pictures))
            image = image + self.image_position
        modulation = nn.functional.silu(vector)
        if self.shared_modulation is not None:
            modulation = self.shared_modulation(modulation)
        if image is None or self.config.cond_mode == "prefix":
            return _Told(vector, modulation, image, [None] * self.config.depth)
        contexts = [block.cross_attention.keys_values(image) for block in self.blocks]  # type: ignore[union-attr, operator]
        return _Told(vector, modulation, None, contexts)

    def _places(self) -> Tensor:
        """(L, dim): where a token stands."""
        sizes = torch.tensor(self.config.scales, device=self.position.device)
        return self.position + self.scale_embed.weight.repeat_interleave(
            sizes, dim=0, output_size=self.config.num_tokens
        )

    def _blocks(
        self, x: Tensor, told: _Told, segments: Sequence[int], cache: KeyValueCache | None = None
    ) -> Tensor:
        for layer, (block, context) in enumerate(zip(self.blocks, told.contexts, strict=True)):
            x = block(x, told.modulation, segments, context=context, cache=cache, layer=layer)
        return x

    def _logits(self, x: Tensor, vector: Tensor) -> Tensor:
        scale, shift = self.head_modulation(nn.functional.silu(vector))[:, None].chunk(2, dim=-1)
        return self.head(self.head_norm(x) * (1 + scale) + shift)

    # ---- Generation ----------------------------------------------------------------------------------------

    @torch.no_grad()
    def generate(
        self,
        quantizer: ScaleQuantizer,
        seeds: Sequence[int],
        condition: Condition = NOTHING,
        *,
        sampling: Sampling = PLAIN,
        given: Tensor | None = None,
        batch_size: int = 1,
        on_scale: Callable[[int, Tensor, Tensor], None] | None = None,
    ) -> Tensor:
        """Draws the tokens of shapes, a scale at a time, with keys and values cached.

        An item depends on its seed, its condition and its given tokens, not on the others.

        Args:
            quantizer: of the tokenizer, on the model's device.
            seeds: of each of the B items.
            condition: B rows, or one for all.
            sampling: how tokens are drawn.
            given: (B, T) int64, T the tokens of the first scales: those are not drawn.
            batch_size: items that go through the model together. With more than one, sums are rounded in
                another way, so that now and then a draw falls on another token.
            on_scale: called with the scale, the guided logits (b, L_s, vocab_size) before any is left out,
                and the tokens (b, L_s), for each `batch_size` of items. With it, logits of given scales
                are made too.

        Returns:
            Tokens (B, L) int64, coarse to fine.

        Raises:
            ValueError: a wrong shape, a condition that the model does not take, or guidance where it takes
                none.
        """
        count = len(seeds)
        if sampling.guidance and not self.config.conditions:
            raise ValueError(f"`guidance` {sampling.guidance} needs a model with a condition; this has none")
        if batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1, got {batch_size}")
        single = {len(tensor) for tensor in condition if tensor is not None} == {1}
        condition = condition.map(
            lambda tensor: tensor.expand(count, *tensor.shape[1:]) if single else tensor
        )
        self._check(condition, count)
        if given is None:
            given = torch.empty(count, 0, dtype=torch.int64, device=self.position.device)
        self._check_given(given, count)
        tokens = given.new_empty(count, self.config.num_tokens)
        for begin in range(0, count, batch_size):
            part = slice(begin, begin + batch_size)
            told = condition.map(lambda tensor: tensor[part])  # noqa: B023
            tokens[part] = self._generate(quantizer, seeds[part], told, sampling, given[part], on_scale)
        return tokens

    def _generate(
        self,
        quantizer: ScaleQuantizer,
        seeds: Sequence[int],
        condition: Condition,
        sampling: Sampling,
        given: Tensor,
        on_scale: Callable[[int, Tensor, Tensor], None] | None,
    ) -> Tensor:
        config, batch = self.config, len(seeds)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        guided = sampling.guidance > 0
        told = self._tell(condition, batch)
        if guided:
            told = _join(told, self._tell(NOTHING, batch))
        prefix = 0 if told.image is None else config.image_tokens
        rows = len(told.vector)
        shape = (rows, config.heads, prefix + config.num_tokens, config.dim // config.heads)
        cache = KeyValueCache(config.depth, shape, told.vector)
        if told.image is not None:
            self._blocks(told.image, told, [prefix], cache)
        x = told.vector[:, None] + self.start_position
        places, accumulated, tokens = self._places(), None, []
        for scale, (begin, end) in enumerate(config.bounds):
            x = self._blocks(x + places[begin:end], told, [end - begin], cache)
            known, logits = end <= given.shape[1], None
            if not known or on_scale is not None:
                logits = self._logits(x, told.vector).float()
                if guided:
                    weight = sampling.guidance * scale / max(len(config.scales) - 1, 1)
                    conditional, unconditional = logits.chunk(2)
                    logits = guide(conditional, unconditional, weight)
            if known:
                drawn = given[:, begin:end]
            else:
                assert logits is not None
                kept = keep_likely(logits / sampling.temperature, sampling.top_k, sampling.top_p)
                drawn = draw_tokens(kept.softmax(-1), generators)
            tokens.append(drawn)
            if on_scale is not None:
                assert logits is not None
                on_scale(scale, logits, drawn)
            accumulated, seen = quantizer.next_input(accumulated, drawn, scale)
            x = self.code_embed(seen).repeat(rows // batch, 1, 1)
        return torch.cat(tokens, 1)

    def _check(self, condition: Condition, batch: int) -> None:
        config = self.config
        shapes = {
            "classes": (batch,),
            "text": (batch, config.text_dim),
            "image": (batch, config.image_tokens, config.image_dim),
        }
        for name, tensor in condition._asdict().items():
            if tensor is None:
                continue
            if name not in config.conditions:
                taken = ", ".join(config.conditions) or "none"
                raise ValueError(f"the model takes no `{name}`; of the conditions it takes {taken}")
            if tuple(tensor.shape) != shapes[name]:
                raise ValueError(f"`{name}` must have shape {shapes[name]}, got {tuple(tensor.shape)}")
        if condition.classes is not None and int(condition.classes.max()) >= config.num_classes:
            raise ValueError(
                f"`classes` must be below {config.num_classes}, got {int(condition.classes.max())}"
            )

    def _check_given(self, given: Tensor, batch: int) -> None:
        ends = [0, *(end for _, end in self.config.bounds)]
        if given.dim() != 2 or given.shape[0] != batch or given.shape[1] not in ends:
            raise ValueError(
                f"`given` must have shape ({batch}, T), T the tokens of the first scales, one of {ends}; "
                f"got {tuple(given.shape)}"
            )
        if given.numel() and not 0 <= int(given.min()) <= int(given.max()) < self.config.vocab_size:
            raise ValueError(
                f"`given` must lie in [0, {self.config.vocab_size}), "
                f"got {int(given.min())} to {int(given.max())}"
            )

    @classmethod
    def from_official(
        cls, source: str | os.PathLike[str] | Mapping[str, Tensor], config: NextScaleConfig | None = None
    ) -> NextScaleTransformer:
        """Loads weights of VAR's released code: see `fastshape.checkpoints.nextscale.load`."""
        from fastshape.checkpoints import nextscale

        return nextscale.load(source, config)


def _known(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (B, ...) with 0 in place of those that are not known, and which (B,) those are.

    What is not known must not reach a layer: NaN times a gradient of 0 is NaN.
    """
    unknown = rows.flatten(1).isnan().all(1)
    return rows.where(~unknown.view(-1, *[1] * (rows.dim() - 1)), 0.0), unknown


def _join(first: _Told, second: _Told) -> _Told:
    """Both batches, one after the other."""

    def both(a: Tensor, b: Tensor) -> Tensor:
        return torch.cat([a, b])

    contexts: list[tuple[Tensor, Tensor] | None] = [
        None if a is None or b is None else (both(a[0], b[0]), both(a[1], b[1]))
        for a, b in zip(first.contexts, second.contexts, strict=True)
    ]
    image = None if first.image is None or second.image is None else both(first.image, second.image)
    return _Told(
        both(first.vector, second.vector), both(first.modulation, second.modulation), image, contexts
    )
