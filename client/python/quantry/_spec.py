"""From the arguments of submit() to the job spec, without a server. Defaults are those of the CLI."""
from __future__ import annotations

import json
import os
import pathlib
from typing import Any, Mapping, Optional, Sequence, Union

from google.protobuf.json_format import ParseDict, ParseError
from google.protobuf.message import Message

from quantry.errors import InvalidRequest, Violation, make_error
from quantry.v1 import job_pb2, method_pb2, quantization_service_pb2 as service_pb2

PathLike = Union[str, "os.PathLike[str]"]
DEFAULT_BITS = 4

METHODS = tuple(field.name for field in method_pb2.Method.DESCRIPTOR.oneofs_by_name["kind"].fields)


def _words(enum: Any, prefix: str) -> dict[str, int]:
    return {name[len(prefix):].lower().replace("_", "-"): number for name, number in enum.items() if number != 0}


FORMATS = _words(job_pb2.OutputFormat, "OUTPUT_FORMAT_")
SAMPLINGS = _words(job_pb2.Calibration.Sampling, "SAMPLING_")
TEXT_FORMATS = {"text": job_pb2.TEXT_FORMAT_TEXT, "tokens": job_pb2.TEXT_FORMAT_TOKEN_IDS}


def wrong(message: str, hint: str = "") -> InvalidRequest:
    return InvalidRequest(message, code="INVALID_ARGUMENT", hint=hint)


def _choice(argument: str, words: Mapping[str, int], got: str) -> int:
    if got not in words:
        raise wrong(f"{argument}: wanted one of {', '.join(words)}, got \"{got}\"")
    return words[got]


def _field(method: method_pb2.Method, name: str) -> Optional[Any]:
    """Sub-message `name` of the chosen method; None when it has none."""
    chosen = getattr(method, method.WhichOneof("kind") or "")
    return getattr(chosen, name) if name in chosen.DESCRIPTOR.fields_by_name else None


def _parse(data: Any, message: Message, argument: str, example: str) -> None:
    try:
        ParseDict(data, message)
    except (ParseError, TypeError, AttributeError) as error:
        raise wrong(f"{argument}: wanted {example}, got an error: {error}") from None


def _config(config: Union[Mapping[str, Any], PathLike, None]) -> Mapping[str, Any]:
    if config is None or isinstance(config, Mapping):
        return config or {}
    try:
        return dict(json.loads(pathlib.Path(config).read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise wrong(f"method_config: wanted a file with the method's JSON, got \"{os.fspath(config)}\": "
                    f"{error}") from None


def build_method(method: str, *, bits: Optional[int], group_size: Union[int, str, None], symmetric: Optional[bool],
                 zero_point_at_least_one: Optional[bool], activation_bits: Optional[int],
                 options: Optional[Mapping[str, Any]],
                 config: Union[Mapping[str, Any], PathLike, None]) -> method_pb2.Method:
    """The method: the config first, then the arguments over it."""
    built = method_pb2.Method()
    example = "the JSON of one method, like {\"awq\": {\"grid\": {\"bits\": 4, \"group_size\": 64}}}"
    _parse(_config(config), built, "method_config", example)
    name = method or built.WhichOneof("kind") or ""
    if name not in METHODS:
        raise wrong(f"method: wanted one of {', '.join(METHODS)} (or method_config), got "
                    + (f"\"{name}\"" if name else "none"), hint="client.methods() explains them")
    if built.WhichOneof("kind") not in (None, name):
        raise wrong(f"method: wanted the method of method_config, \"{built.WhichOneof('kind')}\", got \"{name}\"")
    chosen = getattr(built, name)
    chosen.SetInParent()
    _parse(dict(options or {}), chosen, "method_options", f"fields of method \"{name}\" in proto/quantry/v1/method.proto")
    _apply_grid(built, name, bits, group_size, symmetric, zero_point_at_least_one)
    if activation_bits is not None:
        _apply_activations(built, name, activation_bits)
    return built


def _apply_grid(method: method_pb2.Method, name: str, bits: Optional[int], group_size: Union[int, str, None],
                symmetric: Optional[bool], at_least_one: Optional[bool]) -> None:
    grid = _field(method, "grid")
    if grid is None:
        if any(value is not None for value in (bits, group_size, symmetric, at_least_one)):
            raise wrong("bits, group_size, symmetric and zero_point_at_least_one do not apply to method "
                        f"\"{name}\", which has no grid to choose: leave them out")
        return
    grid.SetInParent()
    if bits is not None:
        grid.bits = bits
    if grid.bits == 0 and not getattr(getattr(method, name), "recipe", ""):
        grid.bits = DEFAULT_BITS
    if symmetric is not None:
        grid.symmetric = symmetric
    if at_least_one is not None:
        grid.zero_point_at_least_one = at_least_one
    if group_size is not None:
        grid.group_size = _group_size(group_size)


def _group_size(value: Union[int, str]) -> int:
    if value == "channel":
        return -1
    try:
        size = int(value)
        whole = isinstance(value, str) or size == value
    except (TypeError, ValueError, OverflowError):
        size, whole = 0, False
    if not whole or size == 0 or not -1 <= size < 1 << 31:
        raise wrong(f"group_size: wanted a number of columns, or \"channel\" (-1) for one scale a row, got {value!r}")
    return size


def _apply_activations(method: method_pb2.Method, name: str, bits: int) -> None:
    if bits != 16 and not 2 <= bits <= 8:
        raise wrong(f"activation_bits: wanted 2 to 8, or 16 to leave activations alone, got {bits}")
    activations = _field(method, "activations")
    if activations is not None:
        activations.bits = bits
    elif bits != 16:
        raise wrong(f"activation_bits does not apply to method \"{name}\"")


def set_calibration(spec: job_pb2.JobSpec, samples: int, length: int, text_format: str, sampling: str) -> None:
    spec.calibration.format = _choice("calibration_format", TEXT_FORMATS, text_format)  # type: ignore[assignment]
    spec.calibration.samples = samples
    spec.calibration.sequence_length = length
    if sampling:
        spec.calibration.sampling = _choice("calibration_sampling", SAMPLINGS, sampling)  # type: ignore[assignment]


def set_evaluation(spec: job_pb2.JobSpec, length: int, windows: int, text_format: str, max_ratio: float,
                   max_increase: float) -> None:
    spec.evaluation.format = _choice("evaluation_format", TEXT_FORMATS, text_format)  # type: ignore[assignment]
    spec.evaluation.sequence_length = length
    spec.evaluation.windows = windows
    if max_ratio:
        spec.quality_gate.max_perplexity_ratio = max_ratio
    if max_increase:
        spec.quality_gate.max_perplexity_increase = max_increase


def build_lora(dropout: Optional[float], **fields: Any) -> job_pb2.LoraOptions:
    """Fields of LoraOptions by name; 0 leaves one to the engine."""
    for name, value in fields.items():
        if value < 0:
            raise wrong(f"preprocessing_{name}: wanted a number above 0, got {value}")
    lora = job_pb2.LoraOptions(**fields)
    if dropout is not None:
        if not 0 <= dropout < 1:
            raise wrong(f"preprocessing_dropout: wanted a share from 0 (none) to below 1, got {dropout}")
        lora.dropout = dropout or -1  # 0 would be the engine's default
    return lora


def set_preprocessing(spec: job_pb2.JobSpec, lora: job_pb2.LoraOptions, length: int, text_format: str) -> None:
    text = _choice("preprocessing_format", TEXT_FORMATS, text_format)
    spec.preprocessing.format = text  # type: ignore[assignment]
    spec.preprocessing.sequence_length = length
    spec.preprocessing.lora.CopyFrom(lora)


def set_outputs(spec: job_pb2.JobSpec, formats: Union[str, Sequence[str]]) -> None:
    for name in dict.fromkeys([formats] if isinstance(formats, str) else formats):
        spec.outputs.add().format = _choice("formats", FORMATS, name)  # type: ignore[assignment]


def check_offered(spec: job_pb2.JobSpec, methods: service_pb2.ListMethodsResponse) -> None:
    """What the server says no to anyway, before gigabytes are hashed and sent."""
    name = spec.method.WhichOneof("kind") or ""
    offered = {row.name: row for row in methods.methods}
    if name not in offered:
        raise _invalid(f"the server offers the methods {', '.join(offered)}, got \"{name}\"", "method")
    row = offered[name]
    grid = _field(spec.method, "grid")
    if grid is not None and grid.bits and row.bits and grid.bits not in row.bits:
        raise _invalid(f"bits: {name} takes {', '.join(map(str, row.bits))}, got {grid.bits}",
                       f"method.{name}.grid.bits")
    _check_recipe(spec.method, row)
    words = {number: text for text, number in FORMATS.items()}
    for output in spec.outputs:
        text = words.get(output.format, str(output.format))
        if row.output_formats and text not in row.output_formats:
            raise _invalid(f"formats: {name} writes {', '.join(row.output_formats)}, got {text}", "outputs")
    if row.needs_calibration and not spec.HasField("calibration"):
        raise _invalid(f"calibration: {name} needs a text to calibrate with, got none", "calibration")


def can_be_quoted(spec: job_pb2.JobSpec) -> bool:
    """Files at the server or uploaded to it; it fetches no others for a quote."""
    texts = (spec.calibration.source, spec.evaluation.source, spec.preprocessing.source)
    return not spec.model.HasField("uri") and not any(text.HasField("uri") for text in texts)


def check_quote(quote: service_pb2.Quote) -> None:
    """What only the model decides (shapes, group size, architecture)."""
    if quote.problems:
        raise make_error("INVALID_ARGUMENT", f"the job could not run: {'; '.join(quote.problems)}",
                         reason="INVALID_SPEC",
                         violations=tuple(Violation("quantization_job.spec", text) for text in quote.problems))


def _check_recipe(method: method_pb2.Method, row: method_pb2.MethodDescription) -> None:
    """What the method's recipe fixes must not be contradicted (common/recipes.h)."""
    field = f"method.{row.name}"
    options = getattr(method, row.name)
    if row.name == "restore":
        options, field = options.first_pass, f"{field}.first_pass"
    name = getattr(options, "recipe", "")
    if not name or not row.recipes:
        return
    recipe = next((recipe for recipe in row.recipes if recipe.name == name), None)
    if recipe is None:
        raise _invalid(f"recipe: wanted one of {', '.join(r.name for r in row.recipes)}, got \"{name}\"",
                       f"{field}.recipe")
    grid, activations = _field(method, "grid"), _field(method, "activations")
    for part, fixed, given in (("grid.bits", recipe.bits, grid.bits if grid else 0),
                               ("grid.group_size", recipe.group_size, grid.group_size if grid else 0),
                               ("activations.bits", recipe.activation_bits, activations.bits if activations else 0)):
        if fixed and given and fixed != given:
            raise _invalid(f"{part}: wanted {fixed}, which recipe {name} has, or nothing, got {given}",
                           f"{field}.{part}")


def _invalid(message: str, field: str) -> Exception:
    return make_error("INVALID_ARGUMENT", message, reason="INVALID_SPEC",
                      violations=(Violation(f"quantization_job.spec.{field}", message),))
