"""A folder for PYTHONPATH: its `sitecustomize` puts zrpc in torch's place in processes that a program starts."""
