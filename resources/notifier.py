"""A notice of a failed run, and what delivers it. A notifier of your own subclasses `Notifier`."""

from __future__ import annotations

from abc import ABC, abstractmethod

import dagster as dg
from pydantic import BaseModel


class NoticeError(RuntimeError):
    """A notice could not be delivered. The message has no secrets: no path of a URL, no token."""


class Notice(BaseModel, frozen=True):
    """One failed run."""

    run_id: str
    job: str
    partition: str | None
    step: str | None
    """The asset that failed; none if the run was lost, or never began."""
    error: str
    failed_at: str
    retried: bool
    """Whether Dagster makes the run again by itself."""
    link: str

    @property
    def text(self) -> str:
        """For people, in a few lines."""
        what = f"{self.job} of {self.partition}" if self.partition else self.job
        where = f" at {self.step}" if self.step else ""
        then = "\nDagster runs it again by itself." if self.retried else ""
        return f"{what} failed{where}, {self.failed_at}: {self.error}{then}\n{self.link}"


class Notifier(dg.ConfigurableResource["Notifier"], ABC):
    """A resource that delivers notices."""

    @abstractmethod
    def tell(self, notice: Notice) -> None:
        """Deliver the notice, or raise: the sensor tries again later."""
