"""What refiners had to tell, kept beside a refined student: a run that was killed tells it too."""

import json
from typing import TYPE_CHECKING

import torch

from emptyset.monitor import Monitor

if TYPE_CHECKING:
    from emptyset.graph.student import Student


def keep_records(student: "Student", monitor: Monitor, key: str) -> None:
    """Keep ``student.records``, for which a state of the student has no place."""
    text = torch.tensor(list(json.dumps(student.records).encode()), dtype=torch.uint8)
    monitor.keep(key, lambda: {"json": text}, final=True)


def restore_records(student: "Student", monitor: Monitor, key: str) -> None:
    """Take over what ``keep_records`` kept; what is missing leaves them as they are."""
    state = monitor.restore(key)
    if state is not None:
        student.records = json.loads(bytes(state["json"].tolist()))
