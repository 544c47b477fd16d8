"""From a model id to a loaded model, for every program that opens models: the command line and the server.

``source`` finds a model's entry and its exported folder, has the folder made where it is missing, and opens it;
``export_process`` is the exporter's program, ``options`` what a program decides about its models, ``memory`` what keeps
a process small that opens and closes them. Nothing here knows of HTTP.
"""
