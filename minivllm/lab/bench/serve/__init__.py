"""A server under load: requests go out over HTTP, and what their senders see is measured.

    requests.py   what is sent: prompts, lengths, and when            (from `minivllm/lab/workloads/`)
    load.py       when it is sent: open loop, closed loop             ──► a `Record` for each request
    client.py     how it is sent, and how a stream is read
    backends.py   the two forms of the OpenAI API
    results.py    records ──► throughput, latencies, goodput: vLLM's names
    doubts.py     what makes a run something else than it is called
    watched.py    the same requests while nobody, one and ten watch; also `against_offline.py`, `beside.py`

A run that lies is worse than none. So a rate is what was really sent, and not what was asked for; requests
that failed are counted and shown; a client that was too busy to look at its clock says so; and warming up
is not part of a run.

Names of options, results and metrics are those of `vllm bench serve`. Read next: `load.py`.
"""
