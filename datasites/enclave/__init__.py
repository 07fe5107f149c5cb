"""Where submitted model code is read, checked and run: verifier, sandbox, and the worker inside it.

Used by a hospital on real rows and by a researcher on mock data, so that both run the same checks. Imports `study` and
`privacy` and neither `hospital` nor `researcher`. Only `worker_process`, `loader` and `shapes` load torch; a process
that verifies code or drives a worker never does.

verifier    static, default-deny check of the syntax tree of `model.py`; executes nothing. Its parts: `scope`
            (what names mean), `taint` (what they hold), `check_statements`, `check_expressions`, `check_calls` and
            `check_rows` (the rules), `allowed_names` and `reserved_names` (the names), `findings`
sandbox     the bubblewrap command line: no network, no home, read-only system, limits; and whether one can be made here
allowing    what to allow on a machine where none can
confine     what the worker gives up before it reads model code: rlimits and system calls
cgroup      the kernel's own count of what a worker uses, if this service was given one
escape      actually tries to escape from the sandbox, for `datasites doctor`
protocol    typed, length-limited frames over a pipe
worker_client  the datasite's end of the pipe
processes   a worker's process as the datasite controls it: started, paused, ended
template    the datasite's end of the one process from which its workers are forked
forking     the sandbox's end of that: forks, and keeps forks apart
worker_process  the sandbox's end of the pipe, with `loader` (from text to a model) and `shapes` (a probe);
            `opacus_parts` keeps out what it doesn't use

    >>> from datasites.enclave.verifier import check_source
    >>> print(check_source("import os\\ndef build_model(n_features): return os.fork()")[0])
    model.py:1:1: import: import of os; import only math, torch, torch.nn, torch.nn.functional

Limit: model code runs in one process with the trainer. The sandbox keeps it from the machine and the
network; that it can't tamper with the trainer's arithmetic rests on the verifier alone.
"""
