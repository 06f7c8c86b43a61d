"""Answers about jobs that have ended, kept as they are sent."""

from __future__ import annotations

import collections
from typing import Final, NamedTuple

from service.models import JobVersion

#: Answers that are kept, and how many bytes each may have: 16 MB in all.
MOST_ANSWERS: Final = 4_096
MOST_BYTES: Final = 4_096


class Answer(NamedTuple):
    """The JSON of a job, which it is for as long as the job is at `version`."""

    version: JobVersion
    etag: str
    body: bytes


class EndedJobs:
    """Answers by the ids of their jobs; the one that was asked for longest ago goes first.

    A job that has ended may still be deleted, by another process too, and its id be used again: an answer must not be
    given from here before the database has said that the job is at this version.
    """

    def __init__(self) -> None:
        self._answers: collections.OrderedDict[str, Answer] = collections.OrderedDict()

    def __len__(self) -> int:
        return len(self._answers)

    def find(self, job_id: str) -> Answer | None:
        """What was kept."""
        answer = self._answers.get(job_id)
        if answer is not None:
            self._answers.move_to_end(job_id)
        return answer

    def keep(self, job_id: str, answer: Answer) -> None:
        """Take an answer in place of an older one, if it is small."""
        if len(answer.body) > MOST_BYTES:
            return
        self._answers[job_id] = answer
        if len(self._answers) > MOST_ANSWERS:
            self._answers.popitem(last=False)

    def forget(self, job_id: str) -> None:
        """Give the room back that an outdated answer takes."""
        self._answers.pop(job_id, None)
