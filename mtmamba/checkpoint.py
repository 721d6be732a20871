"""Checkpoints: ours (the configuration travels in the file) and the published ones, read as data, never as code."""

import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from mtmamba.config import ModelConfig
from mtmamba.errors import MtmError
from mtmamba.files import atomic_path, existing_file
from mtmamba.model import MTMamba
from mtmamba.published import from_published, infer_config, is_published

FORMAT, VERSION = "mtmamba", 2


def save_checkpoint(
    path: Path, model: MTMamba, extra: dict[str, Any] | None = None, training: dict[str, Any] | None = None
) -> None:
    """Write model and configuration atomically. extra: plain data to travel along (metrics, the training command).
    training: tensors and plain data that only going on with the training needs; `load_checkpoint` does not look at it.

    Raises MtmError where the file cannot be written; an older file of that name then stays as it was.
    """
    content = {
        "format": FORMAT,
        "version": VERSION,
        "config": model.config.to_dict(),
        "model": {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()},
        "extra": extra or {},
        **({"training": training} if training else {}),
    }
    with atomic_path(Path(path)) as temporary:
        try:
            torch.save(content, temporary)
        except RuntimeError as error:  # what torch's writer raises on a full disk
            raise MtmError(
                f"{path}: writing the checkpoint failed ({error}); free space or choose another --output"
            ) from error


def load_checkpoint(path: Path, device: str = "cpu") -> MTMamba:
    """Read a checkpoint, ours or a published one, into a model in eval mode on `device`.

    Raises MtmError for a missing, truncated or foreign file, and for missing, unexpected or misshapen tensors, naming them.
    """
    path = Path(path)
    content = read_content(path)
    if content.get("format") == FORMAT:
        version = content.get("version")
        if version not in (1, VERSION):
            raise MtmError(
                f"{path}: expected a mtmamba checkpoint of version 1 or {VERSION}, found version {version!r}; "
                "use the mtmamba release that wrote it"
            )
        model = _model_of(content.get("config", {}), path)
        state = content.get("model")
        if version == 1 and isinstance(state, dict):
            state = _of_version_1(state, path)
    else:
        published = content.get("model", content)
        if not isinstance(published, dict) or not is_published(published):
            raise MtmError(
                f"{path}: expected an MTMamba checkpoint, found a file with the entries "
                f"{', '.join(sorted(map(str, content))[:5]) or '(none)'}; name one written by mtm-train or a published one"
            )
        strangers = [name for name, value in published.items() if not isinstance(value, torch.Tensor)]
        if strangers:
            raise MtmError(
                f"{path}: expected tensors, found {type(published[strangers[0]]).__name__} in {strangers[0]}; "
                "copy or download the checkpoint again"
            )
        model = MTMamba(infer_config(published))
        state = from_published(published, model.config, {k: v.shape for k, v in model.state_dict().items()})
    _load_state(model, state, path)
    return model.eval().to(device)


def _model_of(config: Any, path: Path) -> MTMamba:
    """The untrained model of a configuration read from `path`, which is named in errors."""
    try:
        return MTMamba(ModelConfig.from_dict(config))
    except MtmError as error:
        raise MtmError(f"{path}: {error}") from error


def read_content(path: Path) -> dict[Any, Any]:
    """The dict a checkpoint file holds, on the CPU, with `weights_only`: no code in it is run. Raises MtmError."""
    existing_file(path, "checkpoint")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # notes on old pickle protocols
            _check_sums(path)
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise MtmError(
            f"{path}: expected a checkpoint of tensors and plain data, found a pickle with other objects in it, which is not "
            "read because it could run code; save its state_dict alone"
        ) from error
    except Exception as error:  # bytes that are no checkpoint make torch's reader raise nearly anything
        reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        raise MtmError(
            f"{path}: expected a PyTorch checkpoint, found a truncated or foreign file ({reason}); copy or download it again"
        ) from error
    if not isinstance(content, dict):
        raise MtmError(
            f"{path}: expected a checkpoint (a dict), found a {type(content).__name__}; save {{'model': state_dict}}"
        )
    return content


def _check_sums(path: Path) -> None:
    """Hold every part of a zip file (all but the oldest checkpoints) against the checksum written with it, which torch's
    reader does not: one changed bit of a weight would go unnoticed. Raises zipfile.BadZipFile."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged:
        raise zipfile.BadZipFile(f"the checksum of {damaged} is wrong")


def _of_version_1(state: dict[str, Any], path: Path) -> dict[str, Any]:
    """Version 1 kept the two branches of `CTMBlock` apart, each with its SS2D: `ctm.own` and `ctm.shared`."""
    parts: dict[str, list[Any]] = {}
    try:
        for name in sorted(state):  # own before shared
            joined = name.replace(".ctm.shared.in_proj.", ".ctm.in_proj_shared.")
            joined = re.sub(r"\.ctm\.(own|shared)\.", ".ctm.", joined)
            parts.setdefault(joined, []).append(state[name])
        return {name: torch.cat(tensors) if len(tensors) > 1 else tensors[0] for name, tensors in parts.items()}
    except (AttributeError, RuntimeError, TypeError) as error:
        raise MtmError(f"{path}: the cross-task blocks' tensors do not fit each other; the file is damaged") from error


def _load_state(model: MTMamba, state: Any, path: Path) -> None:
    if not isinstance(state, dict):
        raise MtmError(f"{path}: expected the model's tensors, found {type(state).__name__}; the checkpoint is damaged")
    wanted = model.state_dict()
    problems = [f"missing {name}" for name in wanted.keys() - state.keys()]
    problems += [f"unexpected {name}" for name in state.keys() - wanted.keys()]
    problems += [
        f"{name} has shape {tuple(getattr(state[name], 'shape', ()))}, expected {tuple(wanted[name].shape)}"
        for name in wanted.keys() & state.keys()
        if getattr(state[name], "shape", None) != wanted[name].shape
    ]
    if problems:
        shown = "; ".join(sorted(problems)[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
        raise MtmError(f"{path}: the tensors do not fit the configuration in the file: {shown}")
    broken = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise MtmError(
            f"{path}: {len(broken)} tensors hold NaN or infinite values, {broken[0]} first; the file is damaged or its "
            "training diverged: copy it again, or take an earlier checkpoint"
        )
    model.load_state_dict(state)
