"""Names of ids: what is taken, what is refused, and what a log of them folds to."""

import pytest

from pipeline.core.errors import InvalidField
from pipeline.core.names import (
    Name,
    NameTable,
    name_fields,
    name_from_object,
    name_json,
    name_key,
    nameable,
    parse_name,
)


def test_a_name_is_what_it_was_given_as() -> None:
    body = {"display_name": "  Ships & <b>Co</b> ", "email": "ann@example.com"}
    name = name_from_object("port:a|b", body)
    assert name == Name("port:a|b", "Ships & <b>Co</b>", "ann@example.com")
    assert name.key == "port:a%7Cb" == name_key("port:a|b")
    assert parse_name(name.key.encode(), name_json(name)) == name
    assert name_fields(name)["scope"] == "port:a|b"
    assert name_from_object("user:u", {"display_name": " ", "email": None}).is_empty


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ([], "name"),
        ({"name": "x"}, "name"),
        ({"display_name": 5}, "display_name"),
        ({"display_name": "x" * 201}, "display_name"),
        ({"display_name": "a\nb"}, "display_name"),
        ({"display_name": "a\u202eb"}, "display_name"),
        ({"display_name": "\ud800"}, "display_name"),
        ({"email": "nobody"}, "email"),
        ({"email": "a@b, c@d"}, "email"),
        ({"email": "a@b\r\nBcc: c@d"}, "email"),
        ({"scope": "user:other"}, "scope"),
    ],
)
def test_what_is_no_name_is_refused_by_field(body: object, field: str) -> None:
    with pytest.raises(InvalidField) as refused:
        name_from_object("user:u", body)
    assert refused.value.field == field


@pytest.mark.parametrize("scope", ["all", "user:*", "team:x", "user:", "x"])
def test_only_ids_have_names(scope: str) -> None:
    with pytest.raises(InvalidField):
        nameable(scope)


def test_the_last_readable_record_of_an_id_counts() -> None:
    table = NameTable()
    first, second = Name("user:a:b", "A"), Name("user:a:b", "B")
    for name in (first, second):
        table.apply(name.key.encode(), name_json(name))
    table.apply(second.key.encode(), b"{")
    table.apply(b"user:c", name_json(first))  # not its own key
    assert table.names == {"user:a:b": second}
    table.apply(second.key.encode(), None)
    table.apply(b"user:gone", None)
    assert table.names == {}
