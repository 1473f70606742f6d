"""The base of every configuration section."""

from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

MAX_SEED = 2**63 - 1
NAME_PATTERN = r"^[a-z0-9][a-z0-9-]{0,62}$"
CLASS_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9 _-]{0,40}$"
POOL_PATTERN = r"^[a-z]([a-z0-9-]{0,10}[a-z0-9])?$"
READ_OUT_PATTERN = r"^(last|cls_last_[1-9][0-9]?(_mean_patch)?)$"
QUANTITY_PATTERN = r"^[0-9]+(\.[0-9]+)?(m|[kMGTPE]i?)?$"
LABEL_PATTERN = r"^(([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$"
FORMS = {
    NAME_PATTERN: "of the pattern a-z, 0-9 and hyphens, 63 characters at most",
    CLASS_PATTERN: "of the pattern A-Z, a-z, 0-9, spaces, _ and -, 41 characters at most",
    POOL_PATTERN: "of the pattern a-z, 0-9 and hyphens, 12 characters at most, a letter first",
    READ_OUT_PATTERN: "last, cls_last_N or cls_last_N_mean_patch",
    QUANTITY_PATTERN: "a Kubernetes quantity, such as 8, 500m or 64Gi",
    LABEL_PATTERN: "the key of a Kubernetes label, such as topology.kubernetes.io/zone",
}
"""What a pattern of this configuration asks for, in words."""


def _as_written(value: Any) -> Any:
    return {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value


def _rising(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError(f"needs its least value first, not {pair[0]} before {pair[1]}")
    return pair


Rising = AfterValidator(_rising)
"""Of two values: the first is not above the second."""
Share = Annotated[float, Field(ge=0, le=1)]

Switch = Annotated[Literal["auto", "on", "off"], BeforeValidator(_as_written)]
"""YAML reads a bare on or off as a truth value."""


class Section(BaseModel):
    """A frozen part of the configuration tree.

    A key it does not know is an error, and so is a number that is not finite, or a truth value (which YAML
    makes of a bare yes, no, on and off) where a number is expected.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _truth_values_are_no_numbers(cls, data: Any) -> Any:
        """Pydantic would take true for 1; as text it is refused, at the key where it stands."""
        if not isinstance(data, dict):
            return data
        numbers = {name for name, field in cls.model_fields.items() if _is_number(field.annotation)}
        return {name: _as_text(value) if name in numbers else value for name, value in data.items()}


def _is_number(annotation: Any) -> bool:
    types = _leaf_types(annotation)
    return bool(types & {int, float}) and bool not in types


def _as_text(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_as_text(each) for each in value]
    return str(value).lower() if isinstance(value, bool) else value


def _leaf_types(annotation: Any) -> set[Any]:
    inner = get_args(annotation)
    return {each for argument in inner for each in _leaf_types(argument)} if inner else {annotation}
