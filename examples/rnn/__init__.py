"""A recurrent network with its embedding and its decoder on another worker, written for torch.distributed.rpc."""
