"""The modules of `torch.distributed.nn.api`, by their names."""
