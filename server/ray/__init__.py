"""More than one machine, by Ray: ``cluster`` joins one, ``batch`` reads documents there, ``service`` serves the API.

Only this room imports ray, which the extra ``ray`` brings; nothing outside imports this room before ``--ray`` is given.
"""
