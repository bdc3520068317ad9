"""The arguments of submit() and quote(), once: as a dataclass for the code and as keyword types for callers."""
from __future__ import annotations

import difflib
import numbers
import os
import pathlib
from dataclasses import dataclass, field, fields
from typing import Any, Mapping, Optional, Sequence, TypedDict, Union

from quantry import _spec
from quantry._files import LocalFile, check_job_id, find_model_files, find_text_file
from quantry.v1 import job_pb2, quantization_service_pb2 as service_pb2

PathLike = Union[str, "os.PathLike[str]"]
GIB = 1024.0 ** 3
MOST = 8e9  # of a floating-point argument: as seconds and as GiB it still fits the messages


class SpecArguments(TypedDict, total=False):
    """What decides the result. docs/python.md explains each."""

    model_path: Optional[PathLike]
    model_uri: str
    method: str
    bits: Optional[int]
    group_size: Union[int, str, None]
    symmetric: Optional[bool]
    zero_point_at_least_one: Optional[bool]
    activation_bits: Optional[int]
    method_options: Optional[Mapping[str, Any]]
    method_config: Union[Mapping[str, Any], PathLike, None]
    calibration: Optional[PathLike]
    calibration_samples: int
    calibration_length: int
    calibration_format: str
    calibration_sampling: str
    evaluation: Optional[PathLike]
    evaluation_length: int
    evaluation_windows: int
    evaluation_format: str
    preprocessing_corpus: Optional[PathLike]
    preprocessing_length: int
    preprocessing_format: str
    preprocessing_steps: int
    preprocessing_accumulation: int
    preprocessing_rank: int
    preprocessing_alpha: float
    preprocessing_dropout: Optional[float]
    preprocessing_learning_rate: float
    preprocessing_warmup_steps: int
    preprocessing_clip_norm: float
    preprocessing_attention_output: bool
    max_perplexity_ratio: float
    max_perplexity_increase: float
    formats: Union[str, Sequence[str]]
    device: str
    threads: int
    gpus: int
    gpu_memory_gib: float
    max_run: float
    max_pending: float
    max_no_progress: float
    seed: int


class JobArguments(SpecArguments, total=False):
    """What decides the result, and how the job is found."""

    job_id: str
    request_id: str
    title: str
    labels: Optional[Mapping[str, str]]
    priority: int
    reuse_result: bool
    check: bool


@dataclass(frozen=True)
class Arguments:
    model: Optional[PathLike] = None
    model_path: Optional[PathLike] = None
    model_uri: str = ""
    method: str = ""
    bits: Optional[int] = None
    group_size: Union[int, str, None] = None
    symmetric: Optional[bool] = None
    zero_point_at_least_one: Optional[bool] = None
    activation_bits: Optional[int] = None
    method_options: Optional[Mapping[str, Any]] = None
    method_config: Union[Mapping[str, Any], PathLike, None] = None
    calibration: Optional[PathLike] = None
    calibration_samples: int = 0
    calibration_length: int = 0
    calibration_format: str = "text"
    calibration_sampling: str = ""
    evaluation: Optional[PathLike] = None
    evaluation_length: int = 0
    evaluation_windows: int = 0
    evaluation_format: str = "text"
    preprocessing_corpus: Optional[PathLike] = None
    preprocessing_length: int = 0
    preprocessing_format: str = "text"
    preprocessing_steps: int = 0
    preprocessing_accumulation: int = 0
    preprocessing_rank: int = 0
    preprocessing_alpha: float = 0.0
    preprocessing_dropout: Optional[float] = None
    preprocessing_learning_rate: float = 0.0
    preprocessing_warmup_steps: int = 0
    preprocessing_clip_norm: float = 0.0
    preprocessing_attention_output: bool = False
    max_perplexity_ratio: float = 0.0
    max_perplexity_increase: float = 0.0
    formats: Union[str, Sequence[str]] = ()
    device: str = ""
    threads: int = 0
    gpus: int = 0
    gpu_memory_gib: float = 0.0
    max_run: float = 0.0
    max_pending: float = 0.0
    max_no_progress: float = 0.0
    seed: int = 0
    job_id: str = ""
    request_id: str = ""
    title: str = ""
    labels: Optional[Mapping[str, str]] = None
    priority: int = 0
    reuse_result: bool = False
    check: bool = True

    def spec(self) -> job_pb2.JobSpec:
        """Everything but the uploaded sources."""
        _check_kinds(self)
        spec = job_pb2.JobSpec(seed=self.seed)
        spec.method.CopyFrom(_spec.build_method(
            self.method, bits=self.bits, group_size=self.group_size, symmetric=self.symmetric,
            zero_point_at_least_one=self.zero_point_at_least_one, activation_bits=self.activation_bits,
            options=self.method_options, config=self.method_config))
        self._set_texts(spec)
        _spec.set_outputs(spec, self.formats)
        self._set_resources(spec)
        return spec

    def _set_texts(self, spec: job_pb2.JobSpec) -> None:
        if self.calibration is not None:
            _spec.set_calibration(spec, self.calibration_samples, self.calibration_length, self.calibration_format,
                                  self.calibration_sampling)
        else:
            self._refuse_alone("calibration", "samples", "length", "format", "sampling")
        if self.evaluation is not None:
            _spec.set_evaluation(spec, self.evaluation_length, self.evaluation_windows, self.evaluation_format,
                                 self.max_perplexity_ratio, self.max_perplexity_increase)
        elif self.max_perplexity_ratio or self.max_perplexity_increase:
            raise _spec.wrong("max_perplexity_ratio and max_perplexity_increase need a text to measure on: wanted "
                              "evaluation=FILE, got none")
        else:
            self._refuse_alone("evaluation", "length", "windows", "format")
        lora = self._lora()
        if self.preprocessing_corpus is not None:
            _spec.set_preprocessing(spec, lora, self.preprocessing_length, self.preprocessing_format)
        elif spec.method.HasField("restore"):
            raise _spec.wrong("method \"restore\" needs a text to train on: wanted preprocessing_corpus=FILE, got none")
        elif self.preprocessing_length or self.preprocessing_format != "text" or lora.ByteSize():
            raise _spec.wrong("preprocessing_length, _format, _steps, _rank and the like have no effect alone: wanted "
                              "preprocessing_corpus=FILE, got none")

    def _refuse_alone(self, text: str, *parts: str) -> None:
        """What says how a text is read, where there is none: it would be forgotten in silence."""
        for name in (f"{text}_{part}" for part in parts):
            if getattr(self, name) not in (0, "", "text"):
                raise _spec.wrong(f"{name} has no effect alone: wanted {text}=FILE, got none")

    def _lora(self) -> job_pb2.LoraOptions:
        return _spec.build_lora(
            self.preprocessing_dropout, steps=self.preprocessing_steps, accumulation=self.preprocessing_accumulation,
            rank=self.preprocessing_rank, alpha=self.preprocessing_alpha,
            learning_rate=self.preprocessing_learning_rate, warmup_steps=self.preprocessing_warmup_steps,
            clip_norm=self.preprocessing_clip_norm, attention_output=self.preprocessing_attention_output)

    def _set_resources(self, spec: job_pb2.JobSpec) -> None:
        if self.gpu_memory_gib and not self.gpus and not self.device.startswith("cuda"):
            raise _spec.wrong(f"gpu_memory_gib has no effect alone: wanted gpus=N or device=\"cuda\" with it, got "
                              f"gpus={self.gpus}, device=\"{self.device or 'auto'}\"")
        resources = job_pb2.ResourceRequest(device=self.device, threads=self.threads, gpu_count=self.gpus,
                                            min_gpu_memory_bytes=int(self.gpu_memory_gib * GIB))
        if resources.ByteSize():
            spec.resources.CopyFrom(resources)
        for name in ("max_run", "max_pending", "max_no_progress"):
            seconds = getattr(self, name)
            if not seconds >= 0:
                raise _spec.wrong(f"{name}: wanted seconds, or 0 for no limit, got {seconds}")
            if seconds > 0:
                getattr(spec.stop_limits, name).FromNanoseconds(int(seconds * 1e9))


def arguments_of(model: Optional[PathLike], given: Mapping[str, Any]) -> Arguments:
    """What a call was given. TypeError names an argument that there is not, and what may have been meant."""
    known = [one.name for one in fields(Arguments)]
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known)
            raise TypeError(f"no argument \"{name}\"" + (f" (nearest: {', '.join(near)})" if near else "") +
                            f"; a field of the method's own goes into method_options={{\"{name}\": ...}}")
    return Arguments(model=model, **given)


def _check_kinds(arguments: Arguments) -> None:
    """Numbers and texts that the messages can hold; protobuf's own errors do not name the argument."""
    def is_a(kind: Any, value: Any) -> bool:
        return isinstance(value, kind)  # numpy's numbers are numbers too

    for one in fields(arguments):
        value, kind = getattr(arguments, one.name), str(one.type)
        if value is None and kind.startswith("Optional"):
            continue
        kind = kind.replace("Optional[", "").rstrip("]")
        bits = 63 if one.name == "seed" else 31
        if kind == "int" and not (is_a(numbers.Integral, value) and -(1 << bits) <= value < 1 << bits):
            raise _spec.wrong(f"{one.name}: wanted a whole number of at most {bits} bits, got {value!r}")
        if kind == "float" and not (is_a(numbers.Real, value) and abs(value) < MOST):
            raise _spec.wrong(f"{one.name}: wanted a number below {MOST:g}, got {value!r}")
        if kind == "bool" and not is_a(numbers.Integral, value):
            raise _spec.wrong(f"{one.name}: wanted True or False, got {value!r}")
        if kind == "str" and not is_a(str, value):
            raise _spec.wrong(f"{one.name}: wanted text, got {value!r}")


@dataclass
class Submission:
    """What a submit sends, put together before the server is touched."""

    request: service_pb2.CreateQuantizationJobRequest
    model_files: list[LocalFile] = field(default_factory=list)  # to upload; empty: a path or URI
    calibration_file: list[LocalFile] = field(default_factory=list)  # none or one
    evaluation_file: list[LocalFile] = field(default_factory=list)  # none or one
    corpus_file: list[LocalFile] = field(default_factory=list)  # none or one

    @property
    def files(self) -> list[LocalFile]:
        return self.model_files + self.calibration_file + self.evaluation_file + self.corpus_file

    @property
    def spec(self) -> job_pb2.JobSpec:
        return self.request.quantization_job.spec

    def set_blobs(self, blobs: Sequence[job_pb2.BlobFile]) -> None:
        """Names the uploaded files, in the order of `files`."""
        rest = list(blobs)
        if self.model_files:
            del self.spec.model.blobs.files[:]
            self.spec.model.blobs.files.extend(rest[:len(self.model_files)])
        rest = rest[len(self.model_files):]
        if self.calibration_file:
            self.spec.calibration.source.blob.CopyFrom(rest.pop(0))
        if self.evaluation_file:
            self.spec.evaluation.source.blob.CopyFrom(rest.pop(0))
        if self.corpus_file:
            self.spec.preprocessing.source.blob.CopyFrom(rest.pop(0))


def prepare(arguments: Arguments, tenant: str, request_id: str, validate_only: bool) -> Submission:
    """Checks everything that needs no server. InvalidRequest names the argument."""
    given = [value for value in (arguments.model, arguments.model_path, arguments.model_uri) if value]
    if len(given) != 1:
        raise _spec.wrong("wanted one of model, model_path and model_uri, got " + ("none" if not given else
                                                                                 f"{len(given)} of them"))
    submission = Submission(service_pb2.CreateQuantizationJobRequest(
        parent=f"tenants/{tenant}", request_id=request_id, validate_only=validate_only,
        reuse_result=arguments.reuse_result,
        quantization_job_id=check_job_id(arguments.job_id) if arguments.job_id else ""))
    job = submission.request.quantization_job
    job.spec.CopyFrom(arguments.spec())
    job.display_name, job.priority = arguments.title, arguments.priority
    job.labels.update(arguments.labels or {})
    if arguments.model_path:
        job.spec.model.local_path = os.fspath(arguments.model_path)
    elif arguments.model_uri:
        job.spec.model.uri = arguments.model_uri
    else:
        submission.model_files = find_model_files(pathlib.Path(arguments.model or ""))
    _find_text("calibration", arguments.calibration, job.spec.calibration, submission.calibration_file)
    _find_text("evaluation", arguments.evaluation, job.spec.evaluation, submission.evaluation_file)
    _find_text("preprocessing_corpus", arguments.preprocessing_corpus, job.spec.preprocessing, submission.corpus_file)
    return submission


def _find_text(argument: str, path: Optional[PathLike], part: Any, files: list[LocalFile]) -> None:
    if path is None:
        return
    if "://" in os.fspath(path):
        part.source.uri = os.fspath(path)
    else:
        files.append(find_text_file(argument, pathlib.Path(path)))
