"""Checks a family for required members before an export writes anything, lest the checkpoint be blamed."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ValidationError

from models.family import Family
from models.registration import Registration, missing_members

from .export_errors import ExportError
from .family import FamilyExport

_NOT_GIVEN = {"missing", "extra_forbidden"}  # pydantic's errors that no value in a file can cause


def check_family(registration: Registration, exporter: Any) -> None:
    """Check that rules and exporter have all members.

    Raises
    ------
    ExportError
        naming the class and the missing members.
    """
    if registration.rules is None:
        raise ExportError(f"family {registration.id!r} has no rules; write its class, see {_name(Family)}")
    for found, contract in ((registration.rules, Family), (exporter, FamilyExport)):
        if missing := missing_members(found, contract):
            raise ExportError(
                f"family {registration.id!r}: {_name(found)} has no {', '.join(missing)}; write them, see "
                f"{_name(contract)} (tools/docs/add-a-family.md)"
            )


def image_rules_of(family: FamilyExport) -> BaseModel:
    """The exporter's image settings.

    Raises
    ------
    ExportError
        where settings are missing, or unknown to the family.
    """
    try:
        return family.image_rules
    except ValidationError as error:
        faults = error.errors()
        if not all(fault["type"] in _NOT_GIVEN for fault in faults):
            raise  # a wrong value, which comes from the checkpoint
        said = ", ".join(("no " if one["type"] == "missing" else "an unknown ") + str(one["loc"][0]) for one in faults)
        raise ExportError(
            f"{_name(type(family))}.image_rules gives {error.title} {said}; mend the exporter: the checkpoint has "
            "no part in it"
        ) from error


def _name(found: Any) -> str:
    return f"{found.__module__}.{found.__qualname__}"
