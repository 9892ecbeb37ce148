"""A nightly labelling job in Airflow: the same command every night answers what is new.

Airflow runs it on a worker that has this package's virtual environment; exit status 3 (too many rows
in error) fails the task after everything that worked is committed, and a retry resumes.
"""

from datetime import datetime, timedelta

from airflow import DAG
from airflow.providers.standard.operators.bash import BashOperator

with DAG(
    "caption_lake",
    schedule="0 2 * * *",
    start_date=datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,  # a second run on one output would stop with a message
):
    BashOperator(
        task_id="caption",
        bash_command=(
            "/srv/llava-batch/.venv/bin/python /srv/llava-batch/jobs/caption.py "
            "--input s3://lake/images/ --output s3://lake/captions --max-error-rate 0.05 --quiet"
        ),
        retries=3,
        retry_delay=timedelta(minutes=10),
    )
