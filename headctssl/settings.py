"""Settings: frozen pydantic models, `section.key=value` overrides, JSON files with a format number."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from headctssl.errors import DataError, UsageError, unknown_name
from headctssl.paths import atomic_path

__all__ = ["JsonValue", "Settings", "parse_overrides", "read_json", "with_overrides", "write_json"]

JsonValue = str | int | float | bool | None | list["JsonValue"] | dict[str, "JsonValue"]


class Settings(BaseModel):
    """Base of every settings and file model: frozen, unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")


S = TypeVar("S", bound=Settings)


def parse_overrides(texts: Sequence[str]) -> dict[str, JsonValue]:
    """Parse repeated ``--set section.key=value``; a value is JSON where it parses, else text.

    Args:
        texts: e.g. ``["training.num_steps=20", "views.flip_lr=true"]``.

    Raises:
        UsageError: an item has no ``=``, or one key is set twice.
    """
    overrides: dict[str, JsonValue] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        key = key.strip()
        if not equals or not key:
            raise UsageError(
                "A setting could not be parsed.",
                got=f"--set {text}",
                expected="--set section.key=value",
                do="For example: --set training.num_steps=1000",
            )
        if key in overrides:
            raise UsageError(f"The setting '{key}' is given twice.", got=text, expected="one value", do="Remove one.")
        try:
            overrides[key] = json.loads(value)
        except json.JSONDecodeError:
            overrides[key] = value
    return overrides


def with_overrides(settings: S, overrides: Mapping[str, JsonValue], prefix: str = "") -> S:
    """A copy of ``settings`` with dotted keys replaced and validated.

    Args:
        settings: the model to start from.
        overrides: dotted key -> value, relative to ``settings``.
        prefix: put before the keys in error messages, e.g. ``"training."``.

    Raises:
        UsageError: a key does not exist (the known ones are listed) or a value does not fit.
    """
    data = settings.model_dump(mode="json")
    for key, value in overrides.items():
        node: Any = data
        model: object = settings
        parts = key.split(".")
        for depth, part in enumerate(parts):
            known = list(type(model).model_fields) if isinstance(model, Settings) else []
            if part not in known:
                where = prefix + ".".join(parts[:depth])
                raise unknown_name("setting", prefix + key, [f"{where}{'.' if depth else ''}{k}" for k in known])
            if depth == len(parts) - 1:
                node[part] = value
            else:
                node, model = node[part], getattr(model, part)
    try:
        return type(settings).model_validate(data, strict=False)
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(
            f"The setting '{prefix}{'.'.join(str(p) for p in first['loc'])}' does not accept this value.",
            got=first.get("input"),
            expected=first["msg"],
            do="Correct the value after --set.",
        ) from None


def write_json(path: Path, content: Settings | Mapping[str, Any]) -> None:
    """Write a model or mapping as indented JSON, atomically.

    Args:
        path: the file to write.
        content: the model, or a mapping of JSON values.
    """
    if isinstance(content, Settings):
        text = content.model_dump_json(indent=2)
    else:
        text = json.dumps(content, indent=2, allow_nan=True)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path, model: type[S], *, do: str = "Make the file again with the command that wrote it.") -> S:
    """Read a JSON file into its model.

    Args:
        path: the file.
        model: the settings class it must satisfy.
        do: what the user should do when the file does not fit.

    Raises:
        DataError: the file is missing, is not JSON, or does not fit the model; the field is named.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(
            f"The file {path.name} does not exist.", got=path, expected=f"a {model.__name__} file", do=do
        ) from None
    except UnicodeDecodeError:
        raise DataError(f"{path} is not text.", got="bytes that are not UTF-8", expected="JSON", do=do) from None
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(p) for p in first["loc"])
        raise DataError(
            f"{path} does not fit its schema" + (f" at '{field}'." if field else "."),
            got=str(first.get("input"))[:200],
            expected=first["msg"],
            do=do,
        ) from None
