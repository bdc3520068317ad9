"""An Airflow DAG: quantize a model, go on only when it is good enough.

Put it into the DAG folder; make a connection "quantry" with host and port of the server (its password: the token).
"""
from __future__ import annotations

from datetime import timedelta

try:
    from airflow.sdk import DAG, Param, task
except ImportError:  # Airflow 2
    from airflow.decorators import task
    from airflow.models import DAG, Param

from quantry.integrations.airflow import QuantizeOperator

with DAG("quantize", schedule=None, catchup=False, render_template_as_native_obj=True,  # params.bits stays a number
         params={"model_uri": Param("s3://models/my-model", type="string"), "bits": 4}) as dag:
    quantize = QuantizeOperator(
        task_id="quantize", quantry_conn_id="quantry", model_uri="{{ params.model_uri }}", method="awq",
        arguments={"bits": "{{ params.bits }}", "calibration": "s3://texts/train.txt", "evaluation": "s3://texts/test.txt"},
        retries=3, retry_delay=timedelta(minutes=1), wait_timeout=timedelta(hours=12))

    @task
    def accept(result: dict[str, str]) -> str:
        """The artifact's prefix, when the quality holds."""
        ratio = float(result["perplexity_ratio"])
        if ratio > 1.05:
            raise ValueError(f"wanted a perplexity ratio of at most 1.05, got {ratio}")
        return result["artifact_uri"]

    accept(quantize.output)
