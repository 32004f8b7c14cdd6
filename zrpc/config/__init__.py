"""The launcher's configuration: a YAML file, checked against a schema, with the line of every problem."""
