"""`python -m llava_batch.cli` is the console script `llava-batch`."""

from llava_batch.cli import main

if __name__ == "__main__":
    main()
