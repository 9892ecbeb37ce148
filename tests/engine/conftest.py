"""Engine tests use one thread: the models are tiny, and other work may share the machine."""

import torch

torch.set_num_threads(1)
