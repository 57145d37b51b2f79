"""Every error that stagegraph raises.

```
StagegraphError
├── DeclarationError     a graph, stage or argument is written in a way that cannot work
├── NotRunningError      a node was called outside a run
├── PromptError          a prompts file or a `Prompts` value does not fit
├── StageError           a call of a node failed: provider, output, types, timeout
├── RunError             a run ended without an output; holds its partial record
│   ├── InputError       the input at the outer door does not fit the node
│   ├── LimitError       a limit of the run was reached
│   └── ReplayError      a recorded run does not fit the program that replays it
├── BusyError            a runner has reached `max_runs`, or is shutting down
├── JournalError         a journal cannot be opened, read or written
├── TracingError         a tracing server could not be read or written on request
└── TuningError          an optimization cannot start or go on
```

Inside a graph, an exception of a user's step or `flow` keeps its type, so ordinary `except` works there. The runner
wraps it in a `RunError` at the outer door, with the original as `__cause__`.
"""

from .record.run import InputError, LimitError, ReplayError, RunError
from .schema.errors import (
    BusyError,
    DeclarationError,
    JournalError,
    NotRunningError,
    PromptError,
    StageError,
    StagegraphError,
    TracingError,
    TuningError,
)

__all__ = [
    "BusyError",
    "DeclarationError",
    "InputError",
    "JournalError",
    "LimitError",
    "NotRunningError",
    "PromptError",
    "ReplayError",
    "RunError",
    "StageError",
    "StagegraphError",
    "TracingError",
    "TuningError",
]
