"""Modules of a model that live on other workers: `RemoteModule`, by torch's name and behaviour."""

from zrpc.nn.api.remote_module import RemoteModule

__all__ = ["RemoteModule"]
