"""The Jupyter server extension: what the panel in the browser talks to, and the only thing of ours that it talks to.

    extension.py     loading: configuration, routes, the end
    settings.py      what an operator may set
    gateway.py       the link to the gateway and requests to its HTTP routes; its token stays here
    base.py          what all handlers share: login, permission, XSRF, errors as JSON
    actions.py       REST: status, sessions, cost, secrets
    schedules.py     REST: schedules
    schedule_books.py the notebooks and environments that they are made of
    runs.py          REST: runs and their notebooks
    schedule_form.py what the form of a schedule begins with and says
    live.py          the WebSocket of a window: what runs, told at once and at most once a second
    volumes.py       REST: volumes and their files
    shareds.py       REST: network file systems, which windows see as volumes without versions
    transfers.py     a file's chunks to and from the gateway, a few megabytes at a time

Every route needs Jupyter's own login and the right to act on `cellburst`; what changes something needs its XSRF token too.
"""
