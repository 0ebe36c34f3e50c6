"""Groups: several processes, perhaps in several pods, that train as one.

`seat` says who a process is; `team` is what the training asks of the others; `supervisor` starts a pod's processes
and carries out what `conduct` decides; `wire` is how pods talk. docs/decisions/0006 says why it is so.
"""
