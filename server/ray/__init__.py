"""More than one machine, by Ray: ``cluster`` finds it, ``batch`` reads documents on it, ``service`` serves the API.

Only this room imports ray, which the extra ``ray`` brings; nothing outside imports this room before ``--ray`` is given.
"""
