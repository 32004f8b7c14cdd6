"""A pipeline of two stages with micro-batches, written for torch.distributed.rpc."""
