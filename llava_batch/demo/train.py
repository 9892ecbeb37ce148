"""`python -m llava_batch.demo.train`: the training, by the name that it has always had."""

from llava_batch.demo.training.train import main

if __name__ == "__main__":
    main()
