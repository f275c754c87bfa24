"""Settings declared once: type, default, range and meaning of every field of a configuration."""

from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, ClassVar, Self

from utils.errors import InputError

KINDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", tuple: "a list"}


def setting(
    default: Any,
    meaning: str,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    choices: tuple | None = None,
    optional: type | None = None,
) -> Any:
    """A field of a `Settings` class.

    Parameters
    ----------
    default
        its value where nothing is given.
    meaning
        one line, with the unit.
    least, above, most
        bounds of a number, or of every number of a tuple; `above` excludes the bound itself.
    choices
        the values allowed.
    optional
        type of the value when it is not None; such a field is None by default.
    """
    limits = {"least": least, "above": above, "most": most, "choices": choices, "optional": optional}
    return field(default=default, metadata={"meaning": meaning, **limits})


@dataclass(frozen=True)
class Settings:
    """Base of the settings of one stage; its fields are made by `setting` and checked when an instance is made.

    Raises
    ------
    InputError
        for a value of another type or outside its range; the message names the field as a configuration does.
    """

    part: ClassVar[str] = ""  # of the configuration

    def __post_init__(self) -> None:
        for one in fields(self):
            if one.metadata:
                check(f"{self.part}.{one.name}".lstrip("."), getattr(self, one.name), one)

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Self:
        """The settings of a mapping that holds every field of this class, such as a part of a configuration."""
        values = {one.name: mapping[one.name] for one in fields(cls)}
        return cls(**{name: tuple(v) if isinstance(v, (list, tuple)) else v for name, v in values.items()})


def check(name: str, value: Any, declared: Field) -> None:
    """Raise `InputError` when `value` is not what the field allows."""
    limits, default = declared.metadata, declared.default
    if value is None and limits["optional"] is not None:
        return
    kind = limits["optional"] or (type(default) if default is not MISSING else object)
    if kind in (int, float):
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        fits = number and (kind is float or value == int(value))
    else:
        fits = isinstance(value, kind)
    if not fits:
        raise InputError(f"{name} must be {KINDS.get(kind, kind.__name__)}, not {value!r}.")
    if limits["choices"] is not None and value not in limits["choices"]:
        *others, last = (str(choice) or "empty" for choice in limits["choices"])
        raise InputError(f"{name} '{value}' is unknown; choose {', '.join(others)}{' or ' if others else ''}{last}.")
    for one in value if isinstance(value, tuple) else (value,):
        if limits["least"] is not None and one < limits["least"]:
            raise InputError(f"{name} must be at least {limits['least']}, not {one}.")
        if limits["above"] is not None and one <= limits["above"]:
            raise InputError(f"{name} must be above {limits['above']}, not {one}.")
        if limits["most"] is not None and one > limits["most"]:
            raise InputError(f"{name} must be at most {limits['most']}, not {one}.")


def flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with names like part.field."""
    together: dict[str, Any] = {}
    for name, value in nested.items():
        together.update(flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value})
    return together
