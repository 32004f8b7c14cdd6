"""Modules of a model that live on other workers: `RemoteModule`, by torch's name and behaviour, and `Pipeline`."""

from zrpc.nn.api.remote_module import RemoteModule
from zrpc.nn.pipeline import Pipeline

__all__ = ["Pipeline", "RemoteModule"]
