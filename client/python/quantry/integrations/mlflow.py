"""A job as an MLflow run: parameters, metrics of every block, the artifact, a model version.

    run_id = quantry.integrations.mlflow.log_job(client.wait(job), folder="./my-model-w4", model_name="my-model")

    with quantry.integrations.mlflow.run_of(job) as live:          # metrics while it runs
        client.wait(job, progress=live)

One run a job: logging the same job again (a repeated pipeline step) goes on in its run. Needs mlflow or mlflow-skinny.
"""
from __future__ import annotations

import logging
import os
import time
from types import TracebackType
from typing import Any, Optional, Union

from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from quantry.errors import InvalidRequest
from quantry.job import Job

PathLike = Union[str, "os.PathLike[str]"]

log = logging.getLogger("quantry")

EXPERIMENT = "quantry"
MAX_BATCH = 1000  # metrics a call, a limit of MLflow's
MAX_PARAMS = 100
UID_TAG = "quantry.job_uid"


class LiveRun:
    """The MLflow run of a job; called with the job after each change, it logs what is new."""

    def __init__(self, mlflow: MlflowClient, run_id: str) -> None:
        self.mlflow, self.run_id = mlflow, run_id
        self._steps = -1

    def __call__(self, job: Job) -> None:
        progress = job.progress
        if progress.proto.steps_done <= self._steps:
            return
        self._steps = int(progress.proto.steps_done)
        now = int(time.time() * 1000)
        values = {"progress": progress.ratio, "blocks_done": float(progress.blocks_done),
                  **{f"live_{name}": value for name, value in progress.metrics.items()}}
        try:
            self.mlflow.log_batch(self.run_id, metrics=[Metric(key(n), v, now, self._steps) for n, v in values.items()])
        except MlflowException as failure:  # must not end the wait for the job
            log.warning("MLflow run %s: progress could not be logged: %s", self.run_id, failure)

    def __enter__(self) -> LiveRun:
        return self

    def __exit__(self, kind: Optional[type[BaseException]], error: Optional[BaseException],
                 trace: Optional[TracebackType]) -> None:
        if error is None:
            return
        words = (str(error) or type(error).__name__).splitlines()[0][:500]  # a KeyboardInterrupt has no text
        try:  # the run of a job that goes on stays open
            self.mlflow.set_tag(self.run_id, "quantry.interrupted", words)
        except MlflowException as failure:  # must not hide the error
            log.warning("MLflow run %s: quantry.interrupted could not be set: %s", self.run_id, failure)


def key(name: str) -> str:
    """A name MLflow takes: letters, digits, and _ - . / and blanks."""
    return "".join(c if c.isalnum() or c in "_-. /" else "_" for c in name)[:250]


def _experiment(mlflow: MlflowClient, name: str) -> str:
    """Id of the experiment, made when there is none."""
    found = mlflow.get_experiment_by_name(name)
    if found is None:
        try:
            return str(mlflow.create_experiment(name))
        except MlflowException as error:  # another first job was quicker
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = mlflow.get_experiment_by_name(name)
    if found is None or found.lifecycle_stage != "active":
        raise InvalidRequest(f"experiment: wanted an active one, got \"{name}\", which is deleted",
                             hint="restore it with MlflowClient().restore_experiment(ID), or name another")
    return str(found.experiment_id)


def run_of(job: Job, *, experiment: str = EXPERIMENT, mlflow: Optional[MlflowClient] = None) -> LiveRun:
    """The run of this job, made when there is none."""
    mlflow = mlflow or MlflowClient()
    if not job.uid:
        raise InvalidRequest("wanted a job as the server returned it, got one without uid")
    experiment_id = _experiment(mlflow, experiment)
    runs = mlflow.search_runs([experiment_id], f"tags.`{UID_TAG}` = '{job.uid}'", max_results=1)
    run = runs[0] if runs else mlflow.create_run(experiment_id, run_name=job.id, tags={
        UID_TAG: job.uid, "quantry.job": job.name, "quantry.spec_digest": job.proto.spec_digest,
        **{f"quantry.label.{name}": value for name, value in job.labels.items()}})
    # Of a run that was there, too: whoever made it may have broken off here.
    params = [Param(key(name), value[:6000]) for name, value in job.params().items()]
    for at in range(0, len(params), MAX_PARAMS):
        mlflow.log_batch(run.info.run_id, params=params[at:at + MAX_PARAMS])
    return LiveRun(mlflow, run.info.run_id)


def _metrics(job: Job) -> list[Metric]:
    """Every block as a step, and the headline; nothing for what was not measured."""
    now = int(time.time() * 1000)
    metrics = [Metric(key(f"block/{name}"), float(value), now, int(row["block"]))
               for row in job.block_rows() for name, value in row.items()
               if name != "block" and value is not None]
    headline = {name: value for name, value in job.row().items()
                if name.startswith(("perplexity", "kl_", "top1_", "bits_", "run_")) and value is not None}
    for output in job.output_rows():
        headline[f"{output['format']}/bytes"] = output["bytes"]
    return metrics + [Metric(key(name), float(value), now, 0) for name, value in headline.items()]


def log_job(job: Job, *, folder: Optional[PathLike] = None, model_name: str = "", experiment: str = EXPERIMENT,
            mlflow: Optional[MlflowClient] = None) -> str:
    """Logs an ended job and ends its run; returns the run's id.

    folder      a pulled artifact: uploaded as the run's artifact "quantry"
    model_name  registers a version of this model: its source is that upload, else the prefix where the server keeps
                the artifact, which never changes
    """
    if not job.ended:
        raise InvalidRequest(f"wanted a job that has ended, got {job.id}, which is {job.state}",
                             hint="client.wait(job) first; run_of(job) logs while it runs")
    live = run_of(job, experiment=experiment, mlflow=mlflow)
    mlflow, run_id = live.mlflow, live.run_id
    metrics = _metrics(job)
    for at in range(0, len(metrics), MAX_BATCH):
        mlflow.log_batch(run_id, metrics=metrics[at:at + MAX_BATCH])
    tags = {"quantry.state": job.state, "quantry.artifact": job.artifact,
            "quantry.artifact_uri": str(job.proto.result.artifact_uri)}
    mlflow.log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items() if value])
    if folder is not None:
        mlflow.log_artifacts(run_id, os.fspath(folder), "quantry")
    mlflow.set_terminated(run_id, {"succeeded": "FINISHED", "cancelled": "KILLED"}.get(job.state, "FAILED"))
    if model_name and job.succeeded:
        _register(mlflow, run_id, job, model_name, uploaded=folder is not None)
    return run_id


def _register(mlflow: MlflowClient, run_id: str, job: Job, name: str, uploaded: bool) -> Any:
    """A version of the model, once a run and model."""
    try:
        mlflow.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    versions = [found for found in mlflow.search_model_versions(f"run_id = '{run_id}'") if found.name == name]
    if versions:
        return versions[0]
    run = mlflow.get_run(run_id)
    source = f"{run.info.artifact_uri}/quantry" if uploaded else str(job.proto.result.artifact_uri)
    tags = {"quantry.job": job.name, "method": job.method}
    try:
        return mlflow.create_model_version(name, source, run_id, tags=tags)
    except MlflowException as error:
        if uploaded or not source.startswith("file:"):
            raise
        raise InvalidRequest(f"the MLflow server takes no model from {source}, a folder of the quantry server: {error}",
                             hint="pull the artifact, and log_job(job, folder=..., model_name=...)") from None


__all__ = ["LiveRun", "log_job", "run_of"]
