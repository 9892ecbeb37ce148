"""Local paths: refused where the nodes of a cluster, or `ray job submit`, would not find or keep them."""

import os

from llava_batch.checkpoint import read_template
from llava_batch.driver.cluster import under_job_submit
from llava_batch.errors import UsageError
from llava_batch.job import Job
from llava_batch.read.lake.recognise import CATALOG
from llava_batch.storage import locate


def for_workers(job: Job) -> Job:
    """The job as workers on other nodes get it: with the text of a template file of the driver's node. Of
    questions, recipe and schema they get what the driver read."""
    if job.template in ("auto", "llava-1.5", "checkpoint"):
        return job
    return job.but(template=read_template(job.template))


def refuse_vanishing_output(job: Job) -> None:
    """Refuse a relative output under `ray job submit`, which starts a job in a temporary folder."""
    places = [("--output ", job.output)]
    places += [("--publish delta:", p[6:]) for p in job.publish if p.startswith("delta:")]
    for flag, text in places:
        if under_job_submit() and "://" not in text and not os.path.isabs(text):
            raise UsageError(
                f"{flag}{text}: under `ray job submit` a relative path lies in a temporary "
                "folder that is deleted with the job; give an absolute path or a URI"
            )


def refuse_local_paths(job: Job) -> None:
    """Refuse paths that only one node of several could see.

    What the driver reads and hands on (questions, a recipe, a schema, a template) may be local.

    Raises:
        UsageError: such an input, output or model, unless the job says that the nodes share it.
    """
    import ray

    num_nodes = sum(node["Alive"] for node in ray.nodes())
    if num_nodes < 2 or job.shared_filesystem:
        return
    flags = [("--output", job.output), *(("--input", i) for i in job.input)]
    flags += [("--image-root", job.image_root)] if job.image_root else []
    places = [(f, t, "a URI") for f, t in flags if not t.startswith(CATALOG) and locate(t).is_local]
    if os.path.isdir(job.model):
        places.append(("--model", job.model, "a hub id"))
    for flag, text, instead in places:
        raise UsageError(
            f"{flag} {text}: a local path, and the cluster has {num_nodes} nodes; give {instead}, or "
            "--shared-filesystem if every node sees this folder"
        )
