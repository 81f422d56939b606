from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum

import pytest

from crossforge.profiles.jsonio import DecodeError, decode, encode


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True, kw_only=True)
class Wheel:
    spokes: int

    def __post_init__(self) -> None:
        if self.spokes < 1:
            raise ValueError(f"{self.spokes} spokes")


@dataclass(frozen=True, kw_only=True)
class Cart:
    name: str
    load_kg: float
    painted: bool
    colour: Colour | None
    wheels: tuple[Wheel, ...]
    spares: dict[Colour, Wheel]
    tags: dict[str, str | int]


CART = Cart(
    name="Karre",
    load_kg=2.5,
    painted=True,
    colour=Colour.RED,
    wheels=(Wheel(spokes=8), Wheel(spokes=9)),
    spares={Colour.BLUE: Wheel(spokes=7)},
    tags={"a": "x", "b": 2},
)


def altered(**fields: object) -> dict[str, object]:
    document = encode(CART)
    assert isinstance(document, dict)
    return document | fields


def test_what_is_encoded_and_serialized_decodes_to_the_same_value() -> None:
    assert decode(Cart, json.loads(json.dumps(encode(CART)))) == CART


def test_encoding_keeps_the_declared_order_of_fields() -> None:
    assert list(altered()) == ["name", "load_kg", "painted", "colour", "wheels", "spares", "tags"]


def test_enums_and_enum_keys_become_their_values() -> None:
    document = altered()

    assert document["colour"] == "red"
    assert document["spares"] == {"blue": {"spokes": 7}}


def test_none_is_kept_where_it_is_declared() -> None:
    assert decode(Cart, altered(colour=None)).colour is None


def test_a_whole_number_is_taken_for_a_float() -> None:
    load = decode(Cart, altered(load_kg=3)).load_kg

    assert load == 3.0
    assert type(load) is float


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": None}, "$.name: expected str, got nothing"),
        ({"name": 3}, "$.name: expected str, got int"),
        ({"load_kg": "3"}, "$.load_kg: expected float, got str"),
        ({"load_kg": True}, "$.load_kg: expected float, got bool"),
        ({"painted": 1}, "$.painted: expected bool, got int"),
        ({"colour": "green"}, "$.colour: expected one of red, blue, got 'green'"),
        ({"colour": ["red"]}, "$.colour: expected one of red, blue, got ['red']"),
        ({"wheels": {}}, "$.wheels: expected a list, got dict"),
        ({"wheels": [{"spokes": 1}, 2]}, "$.wheels[1]: expected an object, got int"),
        ({"wheels": [{"spokes": True}]}, "$.wheels[0].spokes: expected int, got bool"),
        ({"wheels": [{"spokes": 1.0}]}, "$.wheels[0].spokes: expected int, got float"),
        ({"wheels": [{}]}, "$.wheels[0]: field 'spokes' is missing"),
        ({"wheels": [{"spokes": 1, "rim": 2}]}, "$.wheels[0]: unknown field 'rim'"),
        ({"wheels": [{"spokes": 0}]}, "$.wheels[0]: 0 spokes"),
        ({"spares": []}, "$.spares: expected an object, got list"),
        ({"spares": {"green": {"spokes": 1}}}, "$.spares: expected one of red, blue, got 'green'"),
        ({"spares": {"red": None}}, "$.spares.red: expected an object, got nothing"),
        ({"tags": {"a": 1.5}}, "$.tags.a: expected str or int, got float"),
        ({"tags": {"a": None}}, "$.tags.a: expected str or int, got nothing"),
        ({"horse": 1}, "$: unknown field 'horse'"),
    ],
)
def test_a_value_of_the_wrong_shape_is_named_by_its_path(fields: dict[str, object], message: str) -> None:
    with pytest.raises(DecodeError) as caught:
        decode(Cart, altered(**fields))
    assert str(caught.value) == message


@pytest.mark.parametrize("name", ["name", "load_kg", "painted", "colour", "wheels", "spares", "tags"])
def test_no_field_may_be_missing(name: str) -> None:
    document = altered()
    del document[name]

    with pytest.raises(DecodeError) as caught:
        decode(Cart, document)
    assert str(caught.value) == f"$: field {name!r} is missing"


def test_an_object_is_expected_at_the_root() -> None:
    with pytest.raises(DecodeError, match=r"^\$: expected an object, got list$"):
        decode(Cart, [])


def test_a_number_too_large_for_a_float_is_rejected() -> None:
    with pytest.raises(DecodeError, match=r"^\$\.load_kg"):
        decode(Cart, altered(load_kg=10**400))
