"""What the interfaces' request bodies have in common: strict pydantic models and their errors."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bitqwen.generation.options import MAX_TOP_LOGPROBS
from bitqwen.generation.sampling import SAMPLING_NAMES, SamplingParams
from bitqwen.generation.stopping import MAX_LENGTH, MAX_STOPS
from bitqwen.server.errors import ApiError, invalid, unsupported

Body = TypeVar("Body", bound="Strict")

StopString = Annotated[str, Field(min_length=1, max_length=MAX_LENGTH)]
Stop = StopString | Annotated[list[StopString], Field(max_length=MAX_STOPS)]
TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]


class Strict(BaseModel):
    """A request body, or a part of one: unknown fields and values of another type are errors.

    Attributes:
        UNSUPPORTED: fields that the interface knows and this server refuses, with the reason.
    """

    # Of strings, pydantic would keep thousands for later requests: short prompts among them.
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, cache_strings="keys")
    UNSUPPORTED: ClassVar[dict[str, str]] = {}


class SamplingFields(Strict):
    """Sampling settings under the names that the interfaces share; absent ones are the model's own."""

    temperature: float | None = Field(None, ge=0, le=100, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, lt=1 << 31, description="Keep the k likeliest tokens; 0 keeps all.")
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    presence_penalty: float | None = Field(None, ge=-10, le=10)
    frequency_penalty: float | None = Field(None, ge=-10, le=10)
    seed: int | None = Field(None, ge=-(1 << 63), lt=1 << 63)

    def sampling(self, defaults: SamplingParams, **more: Any) -> SamplingParams:
        """The settings that result, with the model's recommended ones for those not given."""
        given = {name: getattr(self, name) for name in SamplingFields.model_fields if name in SAMPLING_NAMES}
        if self.seed is not None:
            given["seed"] = self.seed % (1 << 64)
        return defaults.with_overrides({**given, **more})


TopLogprobs = Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)]


def parse(model: type[Body], data: bytes) -> Body:
    """A body as its model.

    Raises:
        ApiError: 400, which names the first field that is wrong.
    """
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        raise refusal(model, error) from None


def refusal(model: type[Strict], error: ValidationError) -> ApiError:
    """The 400 for a body that its model refuses."""
    first = error.errors(include_url=False, include_context=False)[0]
    if first["type"] == "json_invalid":
        return invalid(f"The body is not valid JSON: {first['msg'].removeprefix('Invalid JSON: ')}.")
    param = ".".join(str(part) for part in first["loc"] if _is_field(part)) or None
    if first["type"] == "extra_forbidden":
        name = str(first["loc"][-1])
        if len(first["loc"]) == 1 and name in model.UNSUPPORTED:
            return unsupported(name, model.UNSUPPORTED[name])
        return invalid(f"There is no parameter '{param}'.", param, code="unknown_parameter")
    if first["type"] == "missing":
        return invalid(f"The parameter '{param}' is missing.", param, code="missing_parameter")
    given = repr(first["input"])
    shown = given if len(given) <= 80 else given[:77] + "..."
    return invalid(f"{param or 'The body'} is {shown}: {first['msg']}.", param)


def _is_field(part: int | str) -> bool:
    # pydantic also lists the branch of a union that it tried, such as "list[str]" or "constrained-str".
    return isinstance(part, int) or part.isidentifier()
