"""Arguments, errors and exit codes of the `fastshape` command.

Every error that a user can cause is one line on stderr and exit code 2; Ctrl-C is 130. Anything else is a
mistake of ours and keeps its traceback.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import re
import shlex
import sys
from collections.abc import Sequence

from fastshape import __version__

_FIT = (
    "With --fit, or where no weights are shipped, a small model is first trained on each mesh (minutes, on a "
    "CPU): that shows how well the tokens can hold this shape, not how a model does on shapes that it never "
    "saw."
)
_MESHES = (
    "OBJ, PLY, STL, OFF, GLB, glTF or 3MF files, folders (searched at any depth), or lists: .txt, .csv with "
    "a column path, .jsonl"
)
_PAGE = "index.html"
_MODEL = "shipped weights (see `fastshape info`), a folder, or a hub id (owner/name)"


class CommandError(Exception):
    """What the user has to know and do, in one line."""


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    top = argparse.ArgumentParser(prog="fastshape", description="3D shapes to latent tokens and back.")
    top.add_argument("--version", action="version", version=f"fastshape {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    _add_reconstruct(commands)
    _add_encode(commands)
    _add_decode(commands)
    _add_generate(commands)
    _add_demo(commands)
    _add_prepare(commands)
    _add_conditions(commands)
    _add_train(commands)
    _add_fit(commands)
    _add_pack(commands)
    _add_evaluate(commands)
    _add_info(commands)
    return top


def _add_reconstruct(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    reconstruct = commands.add_parser(
        "reconstruct",
        help="meshes to tokens and back",
        description="Takes meshes through an autoencoder, back into their own frame and scale, and compares "
        f"the results with them. {_FIT} Of a folder or several files, OUT/{_PAGE} shows all; a mesh that "
        "fails is a row with its reason. Exit code: 0, 1 if some of several failed, 2 if nothing could be "
        "started, 130 if interrupted.",
    )
    _add_paths(
        reconstruct,
        _MESHES,
        "the mesh to write (its extension is the format), a .png goes beside it; or a directory",
    )
    reconstruct.add_argument(
        "--up", choices=("y", "z"), help="vertical axis in the pictures; y for glTF, else z"
    )
    reconstruct.add_argument(
        "--pictures", type=_at_least(0), default=64, metavar="N", help="of a folder, draw N; default: 64"
    )
    _add_common(reconstruct)


def _add_encode(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    encode = commands.add_parser(
        "encode",
        help="meshes to files of latent tokens",
        description="Encodes meshes; `decode` leads back, to what `reconstruct` gives, to the last bit. A "
        "file becomes a file, a folder a folder. Exit code: 0, or 1 if some of several failed.",
    )
    _add_paths(encode, _MESHES, "a .fsh, or a directory")
    encode.add_argument(
        "--half", action="store_true", help="write latents in half precision; codes are what they are"
    )
    encode.add_argument(
        "--resolution",
        type=_at_least(4),
        metavar="R",
        help="of triposf, voxels of the surface along an axis; default: the model's, 1024 as published",
    )
    _add_encoding(encode)


def _add_decode(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    decode = commands.add_parser(
        "decode",
        help="files of latent tokens to meshes",
        description="Decodes what `encode` wrote, into the frame and scale of the mesh that was encoded.",
    )
    _add_paths(
        decode,
        ".fsh of `encode`, or a folder of them",
        "the mesh to write (its extension is the format); or a directory, for GLB files",
        metavar="LATENTS",
    )
    decode.add_argument(
        "-m", "--model", metavar="MODEL", help=f"{_MODEL}; default: what the latents say made them"
    )
    decode.add_argument(
        "--scales",
        type=_at_least(1),
        metavar="S",
        help="of codes the first S scales alone, a coarser shape; the file may end behind them",
    )
    _add_weights(decode)
    _add_resolution(decode)


def _add_generate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    generate = commands.add_parser(
        "generate",
        help="new shapes, by a model of tokens",
        description="Draws the tokens of new shapes, a scale at a time, and makes meshes of them: one for "
        "each seed, which depends on that seed alone, and a sheet of all. Exit code: 0, or 1 if some have "
        "no surface.",
    )
    generate.add_argument(
        "-m", "--model", metavar="MODEL", help=f"{_MODEL}; default: the first shipped one of tokens"
    )
    generate.add_argument("-n", "--number", type=_at_least(1), default=16, metavar="N", help="default: 16")
    generate.add_argument(
        "--seed", type=_at_least(0), default=0, metavar="S", help="of the first shape, the others follow"
    )
    generate.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="DIR",
        help="gets seed-0000.glb, its codes .fsh, ... and sheet.png",
    )
    generate.add_argument(
        "--tokenizer", metavar="MODEL", help=f"{_MODEL}; default: what the model was trained with"
    )
    generate.add_argument(
        "--temperature", type=float, default=1.0, metavar="T", help="below 1: likelier tokens; default: 1"
    )
    generate.add_argument(
        "--top-k", type=_at_least(0), default=0, metavar="K", help="draw from the K likeliest; default: all"
    )
    generate.add_argument(
        "--top-p", type=float, default=0.0, metavar="P", help="draw from the likeliest of P in all"
    )
    generate.add_argument(
        "--guidance", type=float, default=0.0, metavar="W", help="toward the condition; default: 0"
    )
    generate.add_argument("--class", dest="label", type=int, metavar="N", help="a class, by its number")
    generate.add_argument("--text", metavar="WORDS", help="what it should be")
    generate.add_argument("--text-model", metavar="PATH", help="CLIP's weights: a folder or a cached hub id")
    generate.add_argument("--image", metavar="FILE", help="a picture of it, on white or transparent")
    generate.add_argument("--image-model", metavar="PATH", help="DINOv2's weights, likewise")
    generate.add_argument(
        "--from", dest="origin", metavar="MESH|FSH", help="go on from the first scales of a shape"
    )
    generate.add_argument("--scales", type=_at_least(1), metavar="S", help="so many of them; default: 1")
    generate.add_argument("--no-picture", action="store_true", help="draw no sheet")
    _add_resolution(generate)


def _add_demo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    demo = commands.add_parser(
        "demo",
        help="procedural solids to tokens and back; needs no file",
        description=f"Makes a few procedural solids and does with them what `reconstruct` does. {_FIT}",
    )
    demo.add_argument(
        "-o", "--output", default="fastshape-demo", metavar="DIR", help="default: fastshape-demo"
    )
    demo.add_argument(
        "--shapes",
        nargs="+",
        default=["gear", "csg-3"],
        metavar="NAME",
        help="torus, plate, ... (see `fastshape info`), or csg-SEED, gear-SEED, ...; default: gear csg-3",
    )
    _add_common(demo)


def _add_info(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    info = commands.add_parser(
        "info",
        help="what this build and this machine have; or what a model, latents or a mesh are",
        description="Without an argument what is here: build, machine, shipped weights, recipes, shapes.",
    )
    info.add_argument(
        "target", nargs="?", metavar="MODEL|LATENTS|MESH", help=f"{_MODEL}; latents of `encode`; or a mesh"
    )


def _add_prepare(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    prepare = commands.add_parser(
        "prepare",
        help="meshes to the points that training draws from",
        description="Samples and labels every mesh of folders and lists, in child processes, each mesh once. "
        "The same command goes on where it was stopped. A bad mesh is written down in OUT/status-RANK.jsonl "
        "and never ends the run.",
    )
    _add_paths(
        prepare,
        "folders (searched at any depth), mesh files, or lists: .txt, .csv with a column path, .jsonl",
        "the folder to write to",
    )
    prepare.add_argument(
        "--preset", metavar="NAME", help="dora, vecset, lagem, vat, hunyuan or structure; default: vecset"
    )
    prepare.add_argument("--spec", metavar="FILE", help="a specification as JSON, instead of a preset")
    prepare.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a field of the specification, e.g. num_near=200000, near_sigmas=0.001,0.005; may be repeated",
    )
    prepare.add_argument(
        "--workers", type=_at_least(1), metavar="N", help="child processes; default: one for each core"
    )
    prepare.add_argument(
        "--threads", type=_at_least(1), default=1, metavar="N", help="threads of each; default: 1"
    )
    prepare.add_argument(
        "--timeout",
        type=_seconds,
        default=600.0,
        metavar="S",
        help="seconds for one mesh; 0: no limit; default: 600",
    )
    prepare.add_argument(
        "--memory",
        type=size_in_bytes,
        default=size_in_bytes("8GB"),
        metavar="SIZE",
        help="of one process; 0: no limit; default: 8GB",
    )
    prepare.add_argument("--retry-failed", action="store_true", help="try again what failed before")
    _add_ranks(prepare)
    prepare.add_argument(
        "--contact-sheet", metavar="PNG", help="draw up to 64 of the prepared shapes, evenly chosen"
    )
    prepare.add_argument("--strict", action="store_true", help="exit code 1 if any mesh failed, else 0")


def _add_conditions(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    conditions = commands.add_parser(
        "conditions",
        help="pictures and captions of prepared shapes, as a generator is told them",
        description="Draws pictures around the mesh of every prepared shape, and keeps what an image "
        "transformer makes of them, and a text transformer of its caption, for `train --conditions`. The "
        "same command goes on where it was stopped. A mesh that fails is written down in "
        "OUT/status-RANK.jsonl and never ends the run.",
    )
    _add_paths(
        conditions,
        "folders that `prepare` wrote; their shards go with OUT too",
        "the folder to write to",
        metavar="PREPARED",
    )
    conditions.add_argument(
        "--image-model", metavar="PATH", help="DINOv2's weights: a folder or a cached hub id"
    )
    conditions.add_argument("--text-model", metavar="PATH", help="CLIP's weights, likewise; needs --captions")
    conditions.add_argument(
        "--captions",
        metavar="FILE",
        help="a .csv with the columns path and caption, or a .json object of captions by path; the last "
        "parts of a path will do, with or without extension",
    )
    conditions.add_argument(
        "--views", type=_at_least(1), default=24, metavar="V", help="pictures of each shape; default: 24"
    )
    conditions.add_argument(
        "--picture-size", type=_at_least(1), default=512, metavar="PIXELS", help="default: 512"
    )
    conditions.add_argument("--up", choices=("y", "z"), help="vertical axis; default: y for glTF, else z")
    conditions.add_argument("--seed", type=int, default=0, metavar="S", help="of the elevations; default: 0")
    conditions.add_argument(
        "--meshes",
        nargs="+",
        default=[],
        metavar="IN",
        help="where the meshes are now, if they were moved; they are known by their bytes",
    )
    conditions.add_argument("--device", metavar="NAME", help="default: cuda where there is a GPU, else cpu")
    _add_ranks(conditions)
    conditions.add_argument("--strict", action="store_true", help="exit code 1 if any mesh failed, else 0")


def _add_pack(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    pack = commands.add_parser(
        "pack",
        help="prepared shapes to tar shards",
        description="Packs what `prepare` wrote into tar files that webdataset reads: for each shape "
        "KEY.json and KEY.safetensors, sorted, the same bytes for the same shapes.",
    )
    pack.add_argument("input", metavar="PREPARED", help="the folder that `prepare` wrote")
    pack.add_argument("-o", "--output", required=True, metavar="OUT", help="the folder to write to")
    pack.add_argument(
        "--shard-size",
        type=size_in_bytes,
        default=size_in_bytes("1GB"),
        metavar="SIZE",
        help="largest file; default: 1GB",
    )


def _add_train(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    train = commands.add_parser(
        "train",
        help="a model on what `prepare` wrote",
        description="Trains a model by a recipe. The same command goes on where it was stopped, bit for bit. "
        "Under torchrun the processes share each batch.",
    )
    train.add_argument("recipe", metavar="RECIPE", help="a name (see `fastshape info`), or a .json file")
    train.add_argument("data", nargs="?", metavar="DATA", help="the folder that `prepare` or `pack` wrote")
    train.add_argument(
        "-o",
        "--output",
        metavar="DIR",
        help="gets checkpoint.safetensors, metrics.jsonl, tensorboard/ and in the end model/",
    )
    train.add_argument("--validation", metavar="DATA", help="prepared shapes to validate on")
    train.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a field of the configuration, e.g. batch_size=16, model.depth=8; may be repeated",
    )
    train.add_argument("--steps", type=_at_least(1), metavar="N", help="default: those of the recipe")
    train.add_argument("--seed", type=int, metavar="S", help="of every random choice; default: 0")
    train.add_argument("--initial", metavar="MODEL", help="a trained model to begin with: a name or a folder")
    train.add_argument(
        "--tokenizer",
        metavar="MODEL",
        help="of a model of tokens: what makes them, a name or a folder; DIR/tokens keeps them",
    )
    train.add_argument(
        "--conditions",
        metavar="PATH",
        help="of a model of tokens: what `conditions` wrote; or a .safetensors of classes, text or image, a "
        "row for each shape of DATA",
    )
    train.add_argument(
        "--allow-missing",
        action="store_true",
        help="a shape that --conditions lacks is trained on as one of which nothing is known",
    )
    train.add_argument("--device", metavar="NAME", help="default: cuda where there is a GPU, else cpu")
    train.add_argument(
        "--cache", type=_at_least(0), default=0, metavar="N", help="shapes to keep in memory; default: 0"
    )
    train.add_argument("--restart", action="store_true", help="begin again, whatever DIR holds")
    train.add_argument(
        "--tensorboard", action=argparse.BooleanOptionalAction, help="default: where it is installed"
    )
    train.add_argument("--print-config", action="store_true", help="print the configuration and do nothing")


def _add_fit(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    fit = commands.add_parser(
        "fit",
        help="one mesh as a field of sparse voxels, by differentiable rendering",
        description="Fits a FlexiCubes field to pictures of a mesh, with no network, and compares it with "
        "dual marching cubes of the same resolution. Minutes, on a CPU. The same command goes on where it "
        "was stopped, bit for bit.",
    )
    fit.add_argument("input", metavar="MESH", help="OBJ, PLY, STL, OFF, GLB, glTF or 3MF; open or closed")
    fit.add_argument(
        "-o", "--output", required=True, metavar="OUT", help="the mesh to write; a .png goes beside it"
    )
    fit.add_argument("--resolution", type=_at_least(1), metavar="R", help="voxels a side; default: 128")
    fit.add_argument("--steps", type=_at_least(1), metavar="N", help="of the last level; default: 400")
    fit.add_argument(
        "--levels", type=_at_least(1), metavar="L", help="each of half the next's resolution; default: 1"
    )
    fit.add_argument("--image-size", type=_at_least(1), metavar="PIXELS", help="default: 256")
    fit.add_argument(
        "--carve", action=argparse.BooleanOptionalAction, default=True, help="leave out what is hidden"
    )
    fit.add_argument("--zoom", action=argparse.BooleanOptionalAction, default=True, help="zoom in on a part")
    fit.add_argument("--seed", type=int, metavar="S", help="of the cameras; default: 0")
    fit.add_argument(
        "--tables",
        nargs="*",
        choices=("savings", "threshold", "variation"),
        metavar="NAME",
        help="instead: what carving and zoom save, what the carving threshold and the total variation do; "
        "writes a .csv; NAME: savings, threshold, variation; all of them where none is named",
    )
    fit.add_argument(
        "--restart", action="store_true", help="begin again, whatever OUT.run holds of a fit that was stopped"
    )
    fit.add_argument("--no-picture", action="store_true", help="draw none")
    fit.add_argument("--up", choices=("y", "z"), help="vertical axis in the picture; y for glTF, else z")


def _add_evaluate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    evaluate = commands.add_parser(
        "evaluate",
        help="reconstructions against what they should be, by each paper's protocol",
        description="Compares meshes by points, surfaces, volumes and normals, each score beside its "
        "sampling floor, and prints the table. Exit code: 0 if every pair was compared, 1 if some failed "
        "(the others were compared), 2 if nothing could be started, 130 if interrupted.",
    )
    evaluate.add_argument(
        "predictions", metavar="A", help="reconstructions: a mesh or a folder; or a .csv of pairs, without B"
    )
    evaluate.add_argument(
        "targets", nargs="?", metavar="B", help="what they should be: a mesh, or a folder with equal stems"
    )
    evaluate.add_argument(
        "-o", "--output", metavar="DIR", help="write index.html, shapes.csv, summary.json and shapes/*.json"
    )
    evaluate.add_argument(
        "--preset",
        default="fastshape",
        choices=("fastshape", "vecset", "lagem", "dora", "triposf", "vat"),
        metavar="NAME",
        help="whose protocol: fastshape, vecset, lagem, dora, triposf or vat; default: fastshape",
    )
    evaluate.add_argument(
        "--samples", type=_at_least(1), metavar="N", help="points per surface; default: the protocol's"
    )
    evaluate.add_argument("--seed", type=int, default=0, metavar="S", help="of the sampling; default: 0")
    evaluate.add_argument(
        "--group",
        choices=("watertight", "raw", "visible"),
        help="what the meshes are; visible: compare only what can be seen from outside; default: watertight "
        "where the target is, else raw",
    )
    evaluate.add_argument(
        "--sne",
        action=argparse.BooleanOptionalAction,
        help="the sharp-normal error (seconds for a pair); default: the protocol's",
    )
    evaluate.add_argument(
        "--level-resolution",
        type=_at_least(16),
        metavar="R",
        help="count the edges of the levels on a watertight remesh, e.g. 512; default: on the target",
    )
    evaluate.add_argument(
        "--latent-bytes", metavar="N|FILE", help="size of the latents: a number, or a CSV or JSON by name"
    )
    evaluate.add_argument(
        "--allow-missing",
        action="store_true",
        help="a file without partner counts as failed, not as an error",
    )
    evaluate.add_argument("--resume", action="store_true", help="keep what -o DIR already holds")
    evaluate.add_argument("--title", metavar="TEXT", help="of the page; default: A")
    evaluate.add_argument(
        "--pictures", type=_at_least(0), default=12, metavar="N", help="pairs to draw; default: 12"
    )
    evaluate.add_argument("--no-picture", action="store_true", help="draw none")
    evaluate.add_argument(
        "--up", choices=("y", "z"), help="vertical axis in the pictures; y for glTF, else z"
    )


def size_in_bytes(text: str) -> int:
    """Bytes of "8GB", "512 MB", "1e9" or "0"; powers of 1024."""
    found = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*([KMGT]?)(?:i?B)?\s*", text, re.IGNORECASE)
    try:
        assert found is not None
        return int(float(found[1]) * 1024 ** " KMGT".index(found[2].upper() or " "))
    except (AssertionError, ValueError):
        raise argparse.ArgumentTypeError(f"expected a size such as 8GB, got '{text}'") from None


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be at least 0, got {text}")
    return value


def _add_paths(command: argparse.ArgumentParser, given: str, written: str, *, metavar: str = "IN") -> None:
    """The files to read, one or more, and where to write; their help."""
    command.add_argument("input", nargs="+", metavar=metavar, help=given)
    command.add_argument("-o", "--output", required=True, metavar="OUT", help=written)


def _add_ranks(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--rank",
        type=_at_least(0),
        metavar="R",
        help="of this process among --world-size; default: from torchrun or Slurm, else 0 of 1",
    )
    command.add_argument("--world-size", type=_at_least(1), metavar="W", help="processes that share the work")


def _add_common(command: argparse.ArgumentParser) -> None:
    _add_encoding(command)
    command.add_argument("--fit", action="store_true", help="train a small model on each mesh first")
    command.add_argument(
        "--steps", type=_at_least(1), metavar="N", help="of that training; default: those of the recipe"
    )
    _add_resolution(command)
    command.add_argument(
        "--resume",
        nargs="?",
        const=True,
        metavar="DIR",
        help="keep what an earlier run of the same command has done; with --fit, DIR keeps the training runs",
    )
    command.add_argument("--no-picture", action="store_true", help="draw none")


def _add_encoding(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "-m",
        "--model",
        metavar="MODEL",
        help=f"{_MODEL}; default: the first shipped of dora-tiny, vecset-tiny",
    )
    _add_weights(command)
    command.add_argument(
        "--tokens",
        type=_at_least(1),
        metavar="N",
        help="latent tokens, of the finest level if there are several; default: the model's",
    )
    command.add_argument(
        "--sample", action="store_true", help="draw the latents from the posterior; default: its mode"
    )
    command.add_argument(
        "--seed", type=int, default=0, metavar="S", help="of every random choice; default: 0"
    )


def _add_resolution(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--resolution",
        type=_at_least(8),
        metavar="R",
        help="points of the extraction lattice along an axis, default: 128; of triposf, voxels of the "
        "surface along an axis, default: the model's, 1024 as published",
    )
    command.add_argument(
        "--surface",
        default="marching_cubes",
        choices=("marching_cubes", "dual_marching_cubes"),
        help="how the surface is made of them; default: marching_cubes",
    )
    command.add_argument(
        "--prune",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="of triposf, leave out the voxels that it says have no surface; open surfaces need it",
    )
    command.add_argument(
        "--memory",
        type=size_in_bytes,
        metavar="SIZE",
        help="of triposf, what a chunk of its decoder may take, e.g. 4GB; smaller chunks change the result "
        "a little; default: its official chunks",
    )


def _add_weights(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--weights",
        action="append",
        default=[],
        metavar="FILE",
        help="an official checkpoint, with its family as MODEL: vecset, dora, lagem, triposf; or structure, "
        "with two of them, the encoder's and the decoder's",
    )


def _at_least(least: int) -> type[int]:
    def number(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, got {value}")
        return value

    return number  # type: ignore[return-value]


def again(options: argparse.Namespace, *more: object) -> str:
    """The shell command that was given, without its --resume, and with `more` behind it."""
    words = ["fastshape", *options.words]
    resume = getattr(options, "resume", None)
    if "--resume" in words:
        at = words.index("--resume")
        del words[at : at + (2 if isinstance(resume, str) else 1)]
    words = [word for word in words if not word.startswith("--resume=")]
    return shlex.join([*words, *map(str, more)])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = parser().parse_args(argv)
    options.words = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name or sign that the terminal cannot show
    try:
        code = importlib.import_module(f"fastshape.cli.{options.command}").run(options)
    except KeyboardInterrupt as error:
        print(f"fastshape: {error if str(error) else 'interrupted'}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe, `head` say, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        message = user_error(error)
        if message is None:
            raise
        print(f"fastshape: {message}", file=sys.stderr)
        return 2
    return code or 0


def user_error(error: Exception) -> str | None:
    """The line to print for an error that the user can mend; None for one of ours."""
    if isinstance(error, ImportError) and "pip install" in str(error):
        return str(error)
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    from fastshape.geometry import MeshError, NoSurfaceError, PrepareError
    from fastshape.models import CheckpointError
    from fastshape.pipelines import LatentsError, PairError
    from fastshape.train import SamplesError

    ours = (CommandError, MeshError, NoSurfaceError, CheckpointError, PrepareError, LatentsError, PairError)
    if isinstance(error, (*ours, SamplesError, FloatingPointError)):
        return " ".join(str(error).splitlines())
    return None
