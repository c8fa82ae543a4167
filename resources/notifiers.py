"""The notifiers that the settings name: who is notified of failed runs."""

from __future__ import annotations

import logging

import dagster as dg

from laion_assets.settings import Notify
from resources.notifier import Notice, Notifier
from resources.webhook import WebhookNotifier


class LogNotifier(Notifier):
    """The log of the code location's process."""

    def tell(self, notice: Notice) -> None:
        logging.getLogger(__name__).error(notice.text)


def notifiers(options: Notify) -> dict[str, Notifier]:
    """Return the notifiers by name. Secrets are read from the environment when one is used."""
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
