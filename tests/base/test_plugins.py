"""Plug-ins: methods and encoders of other packages are found, planned, read back, and refused by name when wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from typing import Any, ClassVar, Literal

import pytest
from pydantic import Field, ValidationError

from headctssl import methods, networks, plugins, presets
from headctssl.cli.main import main
from headctssl.contract import Contract, InputSpec, StorageRule, Window
from headctssl.errors import UsageError
from headctssl.families import FAMILIES, FamilySettings, ForwardCost, ViTSettings, settings_class
from headctssl.methods.dino.dino import Dino
from headctssl.networks.vit import ViTEncoder
from headctssl.planning.encoder_cost import encoder_cost
from headctssl.presets import ENCODER_PRESETS, METHOD_FACTS, EncoderPreset, MethodFacts, pair_refusal

Add = Callable[..., None]
METHOD, ENCODER = plugins.METHOD_GROUP, plugins.ENCODER_GROUP


class ColumnSettings(FamilySettings):
    """Settings of a family that is not built in."""

    kind: ClassVar[Literal["transformer", "cnn"]] = "cnn"
    thin_tokens: ClassVar[bool] = False
    family: Literal["column"] = "column"
    channels: int = Field(8, ge=1)

    @property
    def token_size(self) -> tuple[int, int, int]:
        return (4, 4, 4)

    @property
    def embed_dim(self) -> int:
        return self.channels

    def forward_cost(self, shape: tuple[int, int, int]) -> ForwardCost:
        return ForwardCost(1.0, 1.0, 1.0, 1.0)


class ColumnEncoder(ViTEncoder):
    """Stands for an encoder of another package; never built here."""

    Settings = ColumnSettings
    presets = (EncoderPreset("column_s", ColumnSettings(), "fixed_spacing", "an encoder of another package"),)


class Extra(Dino):
    """Stands for a method of another package."""

    facts = MethodFacts(
        "extra", "column_s", (("global", 1.0),), (), "x", families=("column",), why_families="it needs columns."
    )


class NoFacts(Dino):
    """A method without facts."""


class OtherName(Dino):
    """A method whose facts are of another one."""

    facts = METHOD_FACTS["mae"]


class NoEncoder:
    """A class with settings that is no encoder."""

    Settings = ColumnSettings


class TakenPreset(ColumnEncoder):
    """An encoder whose preset has a name that exists."""

    presets = (EncoderPreset("vit_s", ColumnSettings(), "fixed_spacing", "x"),)


class OtherFamily(ColumnEncoder):
    """An encoder whose preset is of another family."""

    presets = (EncoderPreset("other", ViTSettings(), "fixed_spacing", "x"),)


@pytest.fixture
def add(monkeypatch: pytest.MonkeyPatch) -> Iterator[Add]:
    """Install entry points: (group, name, target)."""
    points: list[EntryPoint] = []
    caches: tuple[Any, ...] = (
        plugins.find_plugins,
        presets.encoder_presets,
        presets.all_method_facts,
        methods._methods,
        plugins._say_left_out,
    )

    def install(*wanted: tuple[str, str, type | str]) -> None:
        for group, name, target in wanted:
            value = target if isinstance(target, str) else f"{__name__}:{target.__name__}"
            points.append(EntryPoint(name=name, value=value, group=group))
        for cached in caches:
            cached.cache_clear()

    def found(group: str) -> list[EntryPoint]:
        return [point for point in points if point.group == group]

    monkeypatch.setattr(plugins, "entry_points", found)
    install()
    yield install
    for cached in caches:
        cached.cache_clear()


def test_an_encoder_of_another_package_is_known_everywhere(add: Add) -> None:
    add((ENCODER, "column", ColumnEncoder))
    assert networks.encoder_class("column") is ColumnEncoder
    assert settings_class("column") is ColumnSettings
    assert presets.encoder_preset("column_s").kind == "cnn"
    assert list(presets.encoder_presets()) == [*ENCODER_PRESETS, "column_s"]
    assert ("column_s", "an encoder of another package") in networks.list_encoders()


def test_a_method_of_another_package_is_known_everywhere(add: Add) -> None:
    add((ENCODER, "column", ColumnEncoder), (METHOD, "extra", Extra))
    assert methods.method_class("extra") is Extra
    assert presets.method_facts("extra") is Extra.facts
    assert "extra" in dict(methods.list_methods())
    assert pair_refusal("extra", "column_s") is None
    assert pair_refusal("mae", "column_s") is None
    refusal = pair_refusal("extra", "vit_s")
    assert refusal is not None
    assert "vit" in refusal
    assert refusal.endswith("it needs columns.")


def contract(encoder: FamilySettings) -> Contract:
    return Contract(
        package_version="0",
        kind="encoder",
        storage=StorageRule(),
        input=InputSpec(
            rule="fixed_spacing", shape=(8, 8, 8), spacing_mm=(1, 1, 1), windows=(Window(level=40, width=80),)
        ),
        preset="column_s",
        encoder=encoder,
        method="extra",
        settings="{}",
        num_scans=1,
        cases_digest="0",
    )


def test_a_contract_with_settings_of_another_package_is_read_back_whole(add: Add) -> None:
    add((ENCODER, "column", ColumnEncoder))
    text = contract(ColumnSettings(channels=5)).model_dump_json()
    read = Contract.model_validate_json(text)
    assert read.encoder == ColumnSettings(channels=5)
    assert read.model_dump_json() == text
    with pytest.raises(ValidationError, match="channels"):
        Contract.model_validate_json(text.replace('"channels":5', '"channels":0'))
    with pytest.raises(ValidationError, match="encoder"):
        Contract.model_validate_json(text.replace('"channels":5', '"channels":5,"more":1'))


def test_a_contract_of_a_package_that_is_not_installed_names_the_family(add: Add) -> None:
    add((ENCODER, "column", ColumnEncoder))
    text = contract(ColumnSettings()).model_dump_json()
    with pytest.raises(UsageError, match="Unknown encoder family 'colum'"):
        Contract.model_validate_json(text.replace('"column"', '"colum"'))
    with pytest.raises(ValidationError, match="family"):
        Contract.model_validate_json(text.replace('"family":"column",', ""))


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_settings_of_every_built_in_family_are_read_back_whole(family: str) -> None:
    settings = next(p.settings for p in ENCODER_PRESETS.values() if p.settings.family == family)
    assert type(settings) is FAMILIES[family]
    assert Contract.model_validate_json(contract(settings).model_dump_json()).encoder == settings


@pytest.mark.parametrize(
    ("group", "name", "target", "told"),
    [
        (METHOD, "dino", Extra, "the name 'dino', which a method of headctssl has"),
        (METHOD, "extra", NoFacts, "facts = None"),
        (METHOD, "extra", OtherName, "facts of 'mae'"),
        (METHOD, "extra", "nowhere.at.all:Extra", "ModuleNotFoundError"),
        (METHOD, "extra", f"{__name__}:Missing", "AttributeError"),
        (METHOD, "extra", f"{__name__}:METHOD", "a class"),
        (ENCODER, "vit", ColumnEncoder, "the name 'vit', which a family of headctssl has"),
        (ENCODER, "other", ColumnEncoder, "the family 'column' in column_s"),
        (ENCODER, "column", TakenPreset, "the name 'vit_s', which another preset has"),
        (ENCODER, "column", OtherFamily, "the family 'vit' in other"),
        (ENCODER, "column", "collections:Counter", "presets = None"),
    ],
)
def test_a_package_that_does_not_fit_is_refused_by_name_and_left_out_elsewhere(
    add: Add, group: str, name: str, target: type | str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    add((group, name, target))
    if name not in METHOD_FACTS:  # a built-in name means what is built in
        with pytest.raises(UsageError) as caught:
            (presets.method_facts if group == METHOD else presets.encoder_preset)(name)
        assert told in str(caught.value)
        assert "uninstall" in str(caught.value)
    assert dict(presets.all_method_facts()) == METHOD_FACTS
    assert dict(presets.encoder_presets()) == ENCODER_PRESETS
    warned = capsys.readouterr().err.splitlines()
    assert len(warned) == 1
    assert warned[0].startswith(f"warning: '{name}' of the package ")
    assert told in warned[0]


def test_two_packages_with_one_name_are_refused_and_left_out_elsewhere(
    add: Add, capsys: pytest.CaptureFixture[str]
) -> None:
    add((METHOD, "extra", Extra), (METHOD, "extra", NoFacts), (ENCODER, "column", ColumnEncoder))
    for ask in (methods.method_class, presets.method_facts):
        with pytest.raises(UsageError, match="the name 'extra'"):
            ask("extra")
    assert "extra" not in dict(methods.list_methods())
    assert "extra" not in presets.all_method_facts()
    assert "column_s" in presets.encoder_presets()
    assert capsys.readouterr().err.count("warning: 'extra'") == 1


def test_classes_of_the_wrong_kind_are_refused(add: Add) -> None:
    add(
        (METHOD, "extra", "collections:Counter"),
        (ENCODER, "column", NoEncoder),
        (ENCODER, "other", "collections:Counter"),
    )
    with pytest.raises(UsageError, match=r"(?s)'extra'.*a subclass of headctssl\.methods"):
        methods.method_class("extra")
    with pytest.raises(UsageError, match=r"(?s)'column'.*a subclass of headctssl\.networks"):
        networks.encoder_class("column")
    for ask in (settings_class, networks.encoder_class):
        with pytest.raises(UsageError, match="Settings = None"):
            ask("other")


def test_built_in_names_need_no_plug_in_to_be_loaded(add: Add) -> None:
    add((METHOD, "extra", "nowhere:Extra"), (ENCODER, "column", "nowhere:Column"))
    assert presets.method_facts("dino").name == "dino"
    assert presets.encoder_preset("vit_s").name == "vit_s"
    assert pair_refusal("dino", "vit_s") is None


class PlainSettings(ColumnSettings):
    """A family that leaves masked tokens out."""

    kind: ClassVar[Literal["transformer", "cnn"]] = "transformer"
    drops_tokens: ClassVar[bool] = True


def test_a_view_costs_less_only_where_its_masked_tokens_are_left_out() -> None:
    whole, part = (encoder_cost(ColumnSettings(), (8, 8, 8), share, False)[0] for share in (1.0, 0.25))
    assert part == whole
    whole, part = (encoder_cost(PlainSettings(), (8, 8, 8), share, False)[0] for share in (1.0, 0.25))
    assert (part.matmul, part.elements, part.stored) == (whole.matmul / 4, whole.elements / 4, whole.stored / 4)


class Sound(Dino):
    """A method of a package that works."""

    facts = MethodFacts("sound", "vit_s", (("global", 1.0),), (), "x")


@pytest.mark.parametrize("group", [METHOD, ENCODER])
def test_a_broken_package_is_named_when_names_are_listed(
    group: str, add: Add, capsys: pytest.CaptureFixture[str]
) -> None:
    add((group, "extra", "nowhere:Extra"), (METHOD, "sound", Sound), (ENCODER, "column", ColumnEncoder))
    with pytest.raises(SystemExit) as ended:
        main(["pretrain", "--list"])
    assert ended.value.code == 0
    out, told = capsys.readouterr()
    assert told.startswith("warning: 'extra' of the package")
    assert "ModuleNotFoundError" in told
    assert told.count("\n") == 1
    assert "sound" in out
    assert "column_s" in out
    assert not any(line.split()[:1] == ["extra"] for line in out.splitlines())
