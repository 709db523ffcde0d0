"""Checkpoint: weights and the contract that travels with them, in one safetensors file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from headctssl.contract import Contract
from headctssl.errors import ContractError, DataError, UsageError
from headctssl.families import EncoderSettings
from headctssl.networks import build_from_settings
from headctssl.networks.encoder import Encoder
from headctssl.networks.tokens import grid_of, resized_table
from headctssl.paths import atomic_path
from headctssl.training.run_state import CHECKPOINT_FILE

__all__ = [
    "PROBE_BEST_FILE",
    "LoadReport",
    "LoadedWeights",
    "find_weights",
    "hash_tensors",
    "load_encoder",
    "load_into",
    "load_weights",
    "save_encoder",
    "save_weights",
]

WEIGHTS_FILES = {"encoder": "encoder.safetensors", "classifier": "classifier.safetensors"}
PROBE_BEST_FILE = "encoder_probe_best.safetensors"
"""The encoder that probed best during pretraining; `-w RUN` takes the last one, this must be named."""

_HEADER = "headctssl_contract"
_ENCODER_PREFIX = "encoder."
_LEAST_SHARE = 0.9


@dataclass(frozen=True)
class LoadedWeights:
    """The content of a weights file."""

    contract: Contract
    tensors: dict[str, Tensor]  # on the CPU; a classifier's names begin with `encoder.` or `head.`

    def part(self, name: Literal["encoder", "head"]) -> dict[str, Tensor]:
        """Tensors of the encoder or of the head, with names as the module itself has them."""
        if self.contract.kind == "encoder":
            return dict(self.tensors) if name == "encoder" else {}
        prefix = f"{name}."
        return {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}


@dataclass(frozen=True)
class LoadReport:
    """What `load_into` did, by tensor name."""

    loaded: tuple[str, ...]
    reshaped: tuple[str, ...]  # loaded after interpolation to another grid
    skipped: tuple[str, ...]  # in the file, not used
    missing: tuple[str, ...]  # in the encoder, kept at their start values
    share: float  # loaded elements over all elements of the encoder

    @property
    def summary(self) -> str:
        """One line for the log."""
        return (
            f"weights: {len(self.loaded)} tensors loaded, {len(self.reshaped)} of them reshaped, "
            f"{len(self.skipped)} skipped, {len(self.missing)} missing ({100 * self.share:.1f} % of the encoder)"
        )


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes of the tensors in the order of their names.

    Args:
        tensors: name -> tensor of any shape, on any device.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}\x1f{tensor.dtype}\x1f{tuple(tensor.shape)}\x1f".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_weights(path: Path, tensors: Mapping[str, Tensor], contract: Contract) -> Contract:
    """Write tensors and their contract as one safetensors file, atomically.

    The bytes are a function of the tensors and the contract alone: no time, path or machine.

    Args:
        path: ``*.safetensors``.
        tensors: name -> tensor; a classifier's names begin with ``encoder.`` or ``head.``.
        contract: written to the header with its `weights_hash` filled in.

    Returns:
        The contract as written.
    """
    plain = {name: tensors[name].detach().cpu().contiguous().clone() for name in sorted(tensors)}
    written = contract.model_copy(update={"weights_hash": hash_tensors(plain)})
    # One header key only: safetensors writes several in random order.
    content = save(plain, metadata={_HEADER: written.model_dump_json()})
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    return written


def save_encoder(path: Path, encoder: Encoder, contract: Contract) -> Contract:
    """Write an encoder and its contract; see `save_weights`."""
    return save_weights(path, encoder.state_dict(), contract)


def find_weights(path: Path | str, kind: Literal["encoder", "classifier"] | None = None) -> Path:
    """The weights file that `-w` means.

    Args:
        path: a weights file, a run folder, or a fine-tuning folder with one fold in it.
        kind: take this kind where a folder has both.

    Raises:
        UsageError: there is none, or several fit.
    """
    path = Path(path).expanduser()
    if path.is_file():
        return path
    names = sorted(WEIGHTS_FILES.values(), key=lambda name: kind is not None and name != WEIGHTS_FILES[kind])
    if path.is_dir():
        for folders in ([path], sorted(path.glob("fold_*"))):
            found = [folder / name for folder in folders for name in names if (folder / name).is_file()]
            found = [f for f in found if f.name == found[0].name] if kind else found
            if len(found) > 1:
                raise UsageError(
                    f"Several weights files are under {path}.",
                    got=", ".join(str(f.relative_to(path)) for f in found),
                    expected="one",
                    do="Give the file itself to -w.",
                )
            if found:
                return found[0]
    unfinished = (path / CHECKPOINT_FILE).exists()
    raise UsageError(
        f"There are no weights at {path}.",
        got="a run that has not finished" if unfinished else ("a folder" if path.is_dir() else "nothing"),
        expected="a file or a run folder with " + " or ".join(names),
        do="Finish the run with --continue." if unfinished else "Correct the path given to -w.",
    )


def load_weights(path: Path | str, kind: Literal["encoder", "classifier"] | None = None) -> LoadedWeights:
    """Read a weights file and check it against its own contract.

    Args:
        path: a file or a run folder, see `find_weights`.
        kind: what the caller needs; None takes either.

    Raises:
        UsageError: there is no file.
        DataError: the file cannot be read or its bytes were changed.
        ContractError: it carries no contract, or is of another kind.
    """
    file = find_weights(path, kind)
    try:
        with safe_open(str(file), framework="pt", device="cpu") as handle:
            header = handle.metadata() or {}
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118  not a mapping
    except (SafetensorError, OSError) as error:
        raise DataError(
            f"{file} is not a weights file.",
            got=str(error)[:200],
            expected="a safetensors file written by headctssl",
            do="Give the encoder.safetensors or classifier.safetensors of a run.",
        ) from None
    contract = _read_contract(file, header)
    if contract.weights_hash != hash_tensors(tensors):
        raise DataError(
            f"The weights in {file} are not those that were written.",
            got="another hash over the tensors",
            expected=contract.weights_hash,
            do="Copy the file again from where it came.",
        )
    if kind is not None and contract.kind != kind:
        raise ContractError(
            f"{file} holds the weights of another kind of model.",
            got=contract.kind,
            expected=kind,
            do="Fine-tune it first with headct_finetune." if kind == "classifier" else "Give an encoder.",
        )
    return LoadedWeights(contract, tensors)


def _read_contract(file: Path, header: Mapping[str, str]) -> Contract:
    if _HEADER not in header:
        raise ContractError(
            f"{file} carries no contract, so nobody knows how its input must be made.",
            got="header keys: " + (", ".join(sorted(header)) or "none"),
            expected=_HEADER,
            do="Use weights written by headctssl.",
        )
    try:
        return Contract.model_validate_json(header[_HEADER])
    except ValidationError as error:
        first = error.errors()[0]
        raise ContractError(
            f"The contract in {file} does not fit this version of headctssl.",
            got=f"{'.'.join(str(p) for p in first['loc'])}: {first.get('input')}",
            expected=first["msg"],
            do="Use the version of headctssl that wrote it.",
        ) from None


def load_encoder(path: Path | str, device: str | torch.device = "cpu") -> Encoder:
    """Build the encoder of a checkpoint, in eval mode, with its contract in `.contract`.

    Args:
        path: a weights file (encoder or classifier) or a run folder.
        device: where to put it.

    Raises:
        HeadCTSSLError: see `load_weights`; also when the tensors do not fit the encoder of the contract.
    """
    weights = load_weights(path)
    encoder = build_from_settings(weights.contract.encoder)
    try:
        encoder.load_state_dict(weights.part("encoder"), strict=True)
    except RuntimeError as error:
        raise ContractError(
            f"The weights at {path} do not fit the encoder of their own contract.",
            got=" ".join(str(error).split())[:300],
            expected=f"the tensors of {weights.contract.preset}",
            do="Use the version of headctssl that wrote them.",
        ) from None
    encoder.contract = weights.contract
    return encoder.to(device).eval()


def load_into(
    encoder: Encoder,
    tensors: Mapping[str, Tensor],
    *,
    source: EncoderSettings | None = None,
    least_share: float = _LEAST_SHARE,
) -> LoadReport:
    """Copy tensors into an encoder by name and shape, and say what was and was not used.

    A trainable position table ``pos_embed`` (N, C) of another grid is interpolated trilinearly over the same
    field of view when `source` says what its grid was; any other difference of shape counts as not loaded.

    Args:
        encoder: the module that receives them.
        tensors: name -> tensor, names as in the encoder's own state.
        source: settings of the encoder that the tensors come from.
        least_share: least share of the encoder's elements that must be loaded.

    Raises:
        ContractError: less than `least_share` was loaded.
    """
    own = encoder.state_dict()
    usable = {name: tensor for name, tensor in tensors.items() if name in own and own[name].shape == tensor.shape}
    reshaped: list[str] = []
    name = "pos_embed"
    if source is not None and name in tensors and name in own and name not in usable:
        table = _resized_positions(tensors[name], source, encoder)
        if table.shape == own[name].shape:
            usable[name] = table
            reshaped.append(name)
    total = sum(tensor.numel() for tensor in own.values())
    share = sum(own[name].numel() for name in usable) / max(1, total)
    report = LoadReport(
        loaded=tuple(sorted(usable)),
        reshaped=tuple(reshaped),
        skipped=tuple(sorted(set(tensors) - set(usable))),
        missing=tuple(sorted(set(own) - set(usable))),
        share=share,
    )
    if share < least_share:
        raise ContractError(
            "The checkpoint does not fit this encoder.",
            got=f"{report.summary}; first missing: {report.missing[0]}",
            expected=f"at least {100 * least_share:.0f} % of the encoder",
            do="Choose the encoder the checkpoint was trained with (-c), or start with -w scratch.",
        )
    encoder.load_state_dict({**own, **usable})
    return report


def _resized_positions(table: Tensor, source: EncoderSettings, encoder: Encoder) -> Tensor:
    """A table (N, C) of positions on the grid of `encoder`; as it is when one of the two is no plain transformer."""
    if not (source.drops_tokens and encoder.drops_tokens):
        return table
    own = encoder.settings
    return resized_table(
        table, grid_of(source.input_shape, source.token_size), grid_of(own.input_shape, own.token_size)
    )
