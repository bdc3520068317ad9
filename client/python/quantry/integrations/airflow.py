"""Airflow: a deferrable operator that quantizes a model. Needs apache-airflow 2.9 or newer (3 too).

    quantize = QuantizeOperator(task_id="quantize", quantry_conn_id="quantry", model="/models/{{ params.name }}",
                                method="awq", arguments={"bits": 4, "calibration": "/texts/train.txt"},
                                pull_to="/models/{{ params.name }}-w4/{{ run_id }}")

The worker submits and lets go of its slot; the trigger watches, over broken connections and restarts of the server;
the worker comes back to pull. The request id comes from DAG, task, map index and run: a task that is tried again or
whose worker died finds its own job, and one that finds it failed queues it again, from its last checkpoint. A cleared
task of the same run does too: give `attempt` to start another.
"""
from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from typing import Any, AsyncIterator, Mapping, Optional, Sequence

from quantry import aio
from quantry._core import AWAY, request_id_for
from quantry._retry import Backoff
from quantry.client import Client, connect
from quantry.errors import Conflict, InvalidRequest, JobCancelled, QuantryError, QuotaExceeded, ServerUnavailable
from quantry.job import Job
from quantry.step import outputs_of

try:  # Airflow 3
    from airflow.sdk import BaseHook, BaseOperator
except ImportError:  # Airflow 2
    from airflow.hooks.base import BaseHook
    from airflow.models import BaseOperator
try:
    from airflow.sdk.exceptions import AirflowException
except ImportError:
    from airflow.exceptions import AirflowException
from airflow.triggers.base import BaseTrigger, TriggerEvent


def options_of(connection: Any) -> dict[str, Any]:
    """An Airflow connection as arguments of connect(): host and port, the token as password, the rest as extra:
    {"tenant": ..., "tls_ca": FILE or "system", "tls_cert": FILE, "tls_key": FILE, "token_file": FILE}."""
    extra = dict(connection.extra_dejson or {})
    options: dict[str, Any] = {name: extra[name] for name in ("tenant", "tls", "tls_ca", "tls_cert", "tls_key",
                                                              "tls_server_name", "token_file") if name in extra}
    if not connection.host:
        raise InvalidRequest(f"Airflow connection \"{connection.conn_id}\": wanted the server's host, got none")
    options["target"] = f"{connection.host}:{connection.port or 7070}"
    if connection.password:
        options["token"] = connection.password
    return options


def _found(connection: Any, tenant: str) -> dict[str, Any]:
    return {**options_of(connection), **({"tenant": tenant} if tenant else {})}


class QuantryJobTrigger(BaseTrigger):  # type: ignore[misc]
    """Waits for a job to end. Holds names only, so that it can be moved to another triggerer at any moment."""

    def __init__(self, job: str, quantry_conn_id: str = "", server: str = "", tenant: str = "") -> None:
        super().__init__()
        self.job, self.quantry_conn_id, self.server, self.tenant = job, quantry_conn_id, server, tenant

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return (f"{type(self).__module__}.{type(self).__qualname__}",
                {"job": self.job, "quantry_conn_id": self.quantry_conn_id, "server": self.server,
                 "tenant": self.tenant})

    async def _options(self) -> dict[str, Any]:
        if not self.quantry_conn_id:
            return {"target": self.server or None, "tenant": self.tenant or None}
        ask = getattr(BaseHook, "aget_connection", None)
        connection = await ask(self.quantry_conn_id) if ask else \
            await asyncio.to_thread(BaseHook.get_connection, self.quantry_conn_id)
        return _found(connection, self.tenant)

    async def _ended(self) -> Job:
        """A server that is away when a triggerer takes over may be restarting, as one that goes away later."""
        backoff, patient_until = Backoff(), time.monotonic() + AWAY
        while True:
            try:
                async with aio.AsyncClient(**await self._options()) as client:
                    return await client.wait(self.job, raise_on_failure=False)
            except ServerUnavailable:
                if time.monotonic() >= patient_until:
                    raise
            except QuotaExceeded as error:  # of watches: others of this triggerer end, and the job goes on anyway
                patient_until = time.monotonic() + AWAY
                await asyncio.sleep(error.retry_after or 0)
            await asyncio.sleep(backoff.next())

    async def run(self) -> AsyncIterator[TriggerEvent]:
        try:
            ended = await self._ended()
            yield TriggerEvent({"job": ended.name, "state": ended.state})
        except QuantryError as error:
            yield TriggerEvent({"job": self.job, "state": "unknown", "error": str(error)})


class QuantizeOperator(BaseOperator):  # type: ignore[misc]
    """Quantizes a model through quantry; its result (XCom) is what quantry.step gives a next step, and `folder`.

    quantry_conn_id  Airflow connection (see options_of); or `server`, else what connect() finds
    tenant           instead of the connection's
    model, model_path, model_uri   one of them, as in submit()
    arguments        any other argument of submit(), by its name
    pull_to          folder on the worker for the artifact; `{{ run_id }}` in it gives every run its own
    pull_force       pull over another artifact in that folder, too: a fixed folder has that of the last run
    deferrable       False: wait on the worker
    cancel_on_kill   cancel the job when the task is killed while it is on a worker; off: another try finds it. A
                     deferred task that is cleared or marked leaves its job running: cancel it with `quantry cancel`
    """

    template_fields: Sequence[str] = ("model", "model_path", "model_uri", "method", "arguments", "job_id", "pull_to",
                                      "attempt", "server", "tenant")

    def __init__(self, *, model: str = "", model_path: str = "", model_uri: str = "", method: str = "",
                 arguments: Optional[Mapping[str, Any]] = None, job_id: str = "", pull_to: str = "", attempt: str = "",
                 quantry_conn_id: str = "", server: str = "", tenant: str = "", deferrable: bool = True,
                 pull_force: bool = False, wait_timeout: Optional[timedelta] = None, cancel_on_kill: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if quantry_conn_id and server:
            raise InvalidRequest(f"wanted one of quantry_conn_id and server, got \"{quantry_conn_id}\" and \"{server}\"")
        self.model, self.model_path, self.model_uri, self.method = model, model_path, model_uri, method
        self.arguments, self.job_id, self.pull_to, self.attempt = arguments or {}, job_id, pull_to, attempt
        self.quantry_conn_id, self.server, self.tenant = quantry_conn_id, server, tenant
        self.deferrable, self.wait_timeout, self.cancel_on_kill = deferrable, wait_timeout, cancel_on_kill
        self.pull_force = pull_force
        self._job = ""

    def _connect(self) -> Client:
        if self.quantry_conn_id:
            return connect(**_found(BaseHook.get_connection(self.quantry_conn_id), self.tenant))
        return connect(self.server or None, tenant=self.tenant or None)

    def request_id(self, context: Any) -> str:
        task = context["ti"]
        return request_id_for("airflow", task.dag_id, task.task_id, task.run_id, getattr(task, "map_index", -1),
                              self.attempt)

    def _submit(self, client: Client, context: Any) -> Job:
        """The job of this task's run; one that failed in an earlier try goes on, once in each try."""
        given = {"model_path": self.model_path, "model_uri": self.model_uri, "method": self.method,
                 "job_id": self.job_id}
        arguments = {"check": True, **self.arguments, **{name: value for name, value in given.items() if value}}
        request_id = self.request_id(context)
        job = client.submit(self.model or None, request_id=request_id, **arguments)
        if job.state != "failed":
            return job
        try:
            again = client.retry(job, request_id=request_id_for(request_id, getattr(context["ti"], "try_number", 1)))
        except Conflict as error:
            if error.reason != "JOB_NOT_RETRYABLE":  # its artifact failed the quality gate, and would again
                raise
            return job
        self.log.info("quantry job %s had failed (%s): once more", job.name, job.error)
        return again

    def execute(self, context: Any) -> Any:
        with self._connect() as client:
            job = self._submit(client, context)
            self._job = job.name
            self.log.info("quantry job %s is %s", job.name, job.state)
            if not self.deferrable:
                seconds = self.wait_timeout.total_seconds() if self.wait_timeout else None
                client.wait(job, timeout=seconds, raise_on_failure=False)
        if not self.deferrable:
            return self.finish(job.name)
        self.defer(trigger=QuantryJobTrigger(job.name, self.quantry_conn_id, self.server, self.tenant),
                   method_name="execute_complete", timeout=self.wait_timeout)

    def execute_complete(self, context: Any, event: Mapping[str, Any]) -> dict[str, str]:
        if "error" in event:
            raise AirflowException(f"quantry job {event['job']}: {event['error']}")
        return self.finish(event["job"])

    def finish(self, name: str) -> dict[str, str]:
        """The ended job's outputs; its artifact pulled. A job that did not succeed fails the task."""
        with self._connect() as client:
            job = client.get(name)
            if not job.succeeded:
                error = job.error or JobCancelled(f"job {job.id} is {job.state}: {job.state_reason}", job)
                raise AirflowException(f"quantry job {job.name}: {error}")
            result = outputs_of(job)
            del result["report"]  # XCom is for small things; the artifact has it
            if self.pull_to:
                result["folder"] = str(client.pull(job, self.pull_to, force=self.pull_force).folder)
        return result

    def on_kill(self) -> None:
        if self.cancel_on_kill and self._job:
            with self._connect() as client:
                client.cancel(self._job, "the Airflow task was killed")


__all__ = ["QuantizeOperator", "QuantryJobTrigger", "options_of"]
