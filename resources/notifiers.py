"""Whom failed runs are told to. Another notifier is a resource with a `tell` of its own."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod

import dagster as dg

from laion_assets.notices import Notice, post
from laion_assets.settings import Notify


class Notifier(dg.ConfigurableResource["Notifier"], ABC):
    @abstractmethod
    def tell(self, notice: Notice) -> None:
        """Deliver it, or raise: it is tried again later then."""


class LogNotifier(Notifier):
    """The log of the code location's process."""

    def tell(self, notice: Notice) -> None:
        logging.getLogger("laion_assets.notices").error(notice.text)


class WebhookNotifier(Notifier):
    """Anything that takes a JSON object by POST."""

    url: str
    token: str = ""

    def tell(self, notice: Notice) -> None:
        post(self.url, notice, self.token)


def notifiers(options: Notify) -> dict[str, Notifier]:
    """Those that the settings name. Secrets are read from the environment when one is used."""
    found: dict[str, Notifier] = {}
    for name in options.to:
        if name == "webhook":
            token = options.webhook_token_variable
            found[name] = WebhookNotifier(
                url=dg.EnvVar(options.webhook_url_variable),
                token=dg.EnvVar(token) if token else "",
            )
        elif name == "slack":
            from resources.slack import slack_notifier

            found[name] = slack_notifier(options)
        else:
            found[name] = LogNotifier()
    return found
