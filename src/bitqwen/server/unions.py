"""Discriminators of unions in request bodies, so that an error names the field and what it may be.

Their tags hold a space, which keeps them out of the field's name in an error.
"""

from __future__ import annotations

from typing import Any

from pydantic import Discriminator


def _text_or_list(value: Any) -> str:
    return "as text" if isinstance(value, str) else "as list"


TEXT_OR_LIST = Discriminator(_text_or_list)
"""Of a union of a text, tagged "as text", and a list, tagged "as list"."""


def by_field(field: str, *values: str, default: str | None = None, message: str) -> Discriminator:
    """Of a union of objects that differ in one field's value, each tagged "of VALUE".

    Args:
        field: its name.
        values: that it may have.
        default: its value where it is absent.
        message: the error for any other value, after which the allowed ones are listed.
    """

    def tag(value: Any) -> str | None:
        found = value.get(field, default) if isinstance(value, dict) else getattr(value, field, default)
        return f"of {found}" if found in values else None

    allowed = ", ".join(f"'{value}'" for value in values)
    return Discriminator(tag, custom_error_type="not_one_of", custom_error_message=f"{message}: {allowed}")
