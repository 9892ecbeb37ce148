"""The command lines: the jobs, and the console script `llava-batch`."""


def main() -> None:
    """The console script `llava-batch`."""
    from llava_batch.cli.jobs import main as run

    run()
