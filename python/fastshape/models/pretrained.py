"""Saving and loading of models: a directory with `config.json` and `model.safetensors`.

Beside the configuration stands what else a user of the weights must know: their license, where they come from
and how the data was prepared that they were trained on (`CheckpointMetadata`).

Every file is written under a temporary name beside its place and then renamed, so that a reader sees the old
file or the new one and never half of one. Every failure to read is a `CheckpointError` that names the file.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from fastshape.runtime.files import CheckpointError, atomic_path, read_safetensors, write_safetensors

CONFIG_FILE = "config.json"
CARD_FILE = "README.md"
WEIGHTS_FILE = "model.safetensors"
FORMAT_VERSION = 1

ModelT = TypeVar("ModelT", bound="PretrainedModel")
ConfigT = TypeVar("ConfigT", bound="ModelConfig")


def weights_hash(module: nn.Module, about: str) -> str:
    """A hash of every weight and of what else decides its outputs, 16 hexadecimal digits, on any device."""
    digest = hashlib.sha256(about.encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def load_exactly(
    module: nn.Module, tensors: Mapping[str, Tensor], source: str, names: str = "parameters"
) -> None:
    """Loads `tensors` into `module` if their names and shapes are exactly the module's, or changes nothing.

    Other floating types are cast; integers where the module has floating numbers are refused.

    Raises:
        CheckpointError: with a list of every missing, extra, misshapen and mistyped name.
    """
    state = module.state_dict()
    compare_shapes(
        {name: tuple(t.shape) for name, t in state.items()},
        {name: tuple(t.shape) for name, t in tensors.items()},
        source,
        names,
    )
    mistyped = [
        f"  mistyped   {name}: {tensors[name].dtype}, expected {state[name].dtype}"
        for name in sorted(state)
        if tensors[name].is_floating_point() != state[name].is_floating_point()
    ]
    if mistyped:
        raise CheckpointError(
            f"{source} does not fit the model: {len(mistyped)} mistyped {names}; nothing was loaded\n"
            + "\n".join(mistyped)
        )
    module.load_state_dict(dict(tensors), strict=True)


def compare_shapes(
    expected: Mapping[str, tuple[int, ...]],
    found: Mapping[str, tuple[int, ...]],
    source: str,
    names: str = "parameters",
) -> None:
    """Raises CheckpointError listing every difference of names or shapes; silent when there is none."""
    missing = [f"  missing    {name} {expected[name]}" for name in sorted(expected.keys() - found.keys())]
    extra = [f"  extra      {name} {found[name]}" for name in sorted(found.keys() - expected.keys())]
    misshapen = [
        f"  misshapen  {name}: expected {expected[name]}, found {found[name]}"
        for name in sorted(expected.keys() & found.keys())
        if expected[name] != found[name]
    ]
    if missing or extra or misshapen:
        lines = missing + extra + misshapen
        raise CheckpointError(
            f"{source} does not fit the model: {len(missing)} missing, {len(extra)} extra, "
            f"{len(misshapen)} misshapen {names}; nothing was loaded\n" + "\n".join(lines)
        )


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Base of the configurations: plain values only, so that JSON holds them."""

    def to_dict(self) -> dict[str, Any]:
        """The fields by name."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls: type[ConfigT], values: Mapping[str, Any]) -> ConfigT:
        """The inverse of `to_dict`.

        Raises:
            ValueError: a field that the configuration does not have.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(values.keys() - known)
        if unknown:
            names = ", ".join(sorted(known))
            raise ValueError(f"{cls.__name__} has no field {', '.join(unknown)}; it has {names}")
        return cls(**values)


class PreparationWarning(UserWarning):
    """Data that was prepared in another way than a model's training data."""


# Of a preparation's fields those that only say how much there is of everything, or which draw it is.
_AMOUNTS = frozenset({"version", "name", "seed", "per_mesh", "dtype", "oversample"})


@dataclasses.dataclass(frozen=True)
class CheckpointMetadata(ModelConfig):
    """What a user of trained weights must know beside their configuration. None: not stated.

    Attributes:
        license: an SPDX identifier.
        source: who trained them.
        preparation: how the training data was prepared, `geometry.PrepareSpec.to_dict()`.
        epsilon: distance of the shell by which its meshes were made watertight, in the normalized frame.
        name: what the weights are called.
        tokenizer: of a model of tokens, what weights made them, by name, folder or hub id.
        tokenizer_fingerprint: of those weights, `PretrainedModel.fingerprint()`.
    """

    license: str | None = None
    source: str | None = None
    preparation: dict[str, Any] | None = None
    epsilon: float | None = None
    name: str | None = None
    tokenizer: str | None = None
    tokenizer_fingerprint: str | None = None

    def differences(self, preparation: Mapping[str, Any] | None, epsilon: float | None = None) -> list[str]:
        """In words, where data prepared in this way differs from the training data; amounts do not count.

        What either side does not state is not compared. Signed distances serve a model of occupancy.
        """
        found = []
        if preparation is not None and self.preparation is not None:
            for name in sorted(self.preparation.keys() & preparation.keys() - _AMOUNTS):
                trained, given = (
                    bool(values[name]) if name.startswith("num_") else _plain(values[name])
                    for values in (self.preparation, preparation)
                )
                if name == "labels" and (trained, given) == ("occupancy", "sdf"):
                    continue
                if trained != given:
                    word = "any " if name.startswith("num_") else ""
                    found.append(f"{word}{name}: trained with {trained}, got {given}")
        if epsilon is not None and self.epsilon is not None and epsilon != self.epsilon:
            found.append(f"epsilon: trained with {self.epsilon:g}, got {epsilon:g}")
        return found


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


class PretrainedModel(nn.Module):
    """A module built from a `Config`, with `save_pretrained`, `from_pretrained` and `push_to_hub`."""

    Config: ClassVar[type[ModelConfig]]
    config: Any
    metadata: CheckpointMetadata = CheckpointMetadata()
    origin: str | None = None
    """What the weights were loaded by: a name, a folder or a hub id; None if they were not loaded."""

    @property
    def title(self) -> str:
        """The weights in one word: what they were loaded by, else their name, else the class."""
        return self.origin or self.metadata.name or type(self).__name__

    def fingerprint(self) -> str:
        """A hash of class, configuration and every weight, 16 hexadecimal digits; the device plays no part.

        Equal fingerprints decode equal latents to equal shapes. Weights that are stored in half precision are
        others than those that they were rounded from.
        """
        return weights_hash(self, type(self).__name__ + json.dumps(self.config.to_dict(), sort_keys=True))

    def check_preparation(
        self, preparation: Mapping[str, Any] | None, *, epsilon: float | None = None
    ) -> list[str]:
        """Warns (`PreparationWarning`) where data was prepared in another way than the training data.

        Args:
            preparation: `geometry.PrepareSpec.to_dict()` of the data; None: not known.
            epsilon: of its watertight shells.

        Returns:
            The differences in words; empty without any, or where the model does not know its training data.
        """
        found = self.metadata.differences(preparation, epsilon)
        if found:
            text = f"this {type(self).__name__} was trained on data prepared in another way: "
            warnings.warn(text + "; ".join(found), PreparationWarning, stacklevel=2)
        return found

    def save_pretrained(self, path: str | os.PathLike[str], *, dtype: torch.dtype | None = None) -> None:
        """Writes `model.safetensors`, then `config.json`, into the directory `path` (made if need be).

        Args:
            path: the directory.
            dtype: of the stored floating-point weights, e.g. torch.float16 for half the size; None keeps
                theirs. `from_pretrained` gives the model's own dtype again.

        Raises:
            ValueError: a dtype that is not of floating point, or that a weight is too large for.
        """
        directory = Path(path)
        state = self.state_dict()
        if dtype is not None:
            if not dtype.is_floating_point:
                raise ValueError(f"`dtype` must be of floating point, got {dtype}")
            state = {name: t.to(dtype) if t.is_floating_point() else t for name, t in state.items()}
            for name, tensor in state.items():
                if not bool(tensor.isfinite().all()):
                    raise ValueError(f"`dtype` {dtype} cannot hold {name}, or it is not finite")
        write_safetensors(directory / WEIGHTS_FILE, state, {"format": "pt"})
        description = {
            "model": type(self).__name__,
            "format_version": FORMAT_VERSION,
            "config": self.config.to_dict(),
            "metadata": self.metadata.to_dict(),
        }
        with atomic_path(directory / CONFIG_FILE) as temporary:
            temporary.write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        message: str = "Upload model",
        token: str | None = None,
    ) -> str:
        """Uploads what `save_pretrained` writes, and a card, to a Hugging Face repository.

        Args:
            repo_id: "owner/name"; made if it does not exist.
            private: of a new repository; None is the owner's default.
            revision: branch; None is the main one.
            message: of the commit.
            token: None takes the one of `hf auth login`.

        Returns:
            The address of the commit.
        """
        from huggingface_hub import HfApi

        api = HfApi(token=token)
        api.create_repo(repo_id, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            (Path(folder) / CARD_FILE).write_text(self._card(repo_id), encoding="utf-8")
            return str(
                api.upload_folder(
                    repo_id=repo_id, folder_path=folder, revision=revision, commit_message=message
                )
            )

    def _card(self, repo_id: str) -> str:
        license_line = f"license: {self.metadata.license}\n" if self.metadata.license else ""
        source = f"\n\nWeights: {self.metadata.source}." if self.metadata.source else ""
        name = type(self).__name__
        return (
            f"---\nlibrary_name: fastshape\n{license_line}---\n\n# {repo_id}\n\n"
            f"A `fastshape.models.{name}`: `{name}.from_pretrained({repo_id!r})`.{source}\n"
        )

    @classmethod
    def from_pretrained(
        cls: type[ModelT],
        path: str | os.PathLike[str],
        *,
        revision: str | None = None,
        device: str | torch.device = "cpu",
    ) -> ModelT:
        """Loads what `save_pretrained` wrote, in evaluation mode.

        Args:
            path: a directory, or the id of a Hugging Face repository ("owner/name") that holds such a
                directory's files.
            revision: branch, tag or commit of the repository.
            device: where the model goes.

        Raises:
            CheckpointError: a file is missing, damaged, from another model, from a newer version, or does
                not fit its configuration.
        """
        config_path, weights_path = locate(path, revision)
        description = read_description(config_path)
        name, version, values = description["model"], description["format_version"], description["config"]
        if name != cls.__name__:
            raise CheckpointError(f"{config_path} describes a {name}, not a {cls.__name__}")
        if not isinstance(version, int) or not 1 <= version <= FORMAT_VERSION:
            raise CheckpointError(
                f"{config_path} has format version {version}; this release reads 1 to {FORMAT_VERSION}"
            )
        try:
            model = cls(cls.Config.from_dict(values))  # type: ignore[call-arg]
            model.metadata = CheckpointMetadata.from_dict(description.get("metadata", {}))
        except (ValueError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{config_path} holds a bad configuration: {error}") from error
        tensors, _ = read_safetensors(weights_path)
        load_exactly(model, tensors, str(weights_path))
        model.origin = os.fspath(path)
        return model.to(device).eval()


def read_description(path: Path) -> dict[str, Any]:
    """What a `config.json` holds: at least `model`, `format_version` and `config`.

    Raises:
        CheckpointError: the file is missing or something else.
    """
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        for key in ("model", "format_version", "config"):
            description[key]
    except FileNotFoundError:
        raise CheckpointError(f"checkpoint {path} does not exist") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is not a model configuration: {error!r}") from error
    return dict(description)


def looks_like_hub_id(path: str | os.PathLike[str]) -> bool:
    """Whether a text reads as "owner/name"."""
    return isinstance(path, str) and path.count("/") == 1 and not path.startswith((".", "/", "~"))


def locate(path: str | os.PathLike[str], revision: str | None = None) -> tuple[Path, Path]:
    """The files of configuration and weights in a folder, or of a hub id, which is downloaded.

    Raises:
        CheckpointError: neither a folder nor a repository that can be read.
    """
    directory = Path(path)
    if directory.is_dir():
        return directory / CONFIG_FILE, directory / WEIGHTS_FILE
    if not looks_like_hub_id(path):
        raise CheckpointError(f"checkpoint directory {path} does not exist")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        config, weights = (
            Path(hf_hub_download(path, name, revision=revision))  # type: ignore[arg-type]
            for name in (CONFIG_FILE, WEIGHTS_FILE)
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"{path} is neither a directory nor a readable Hugging Face repository: {error}"
        ) from error
    return config, weights
