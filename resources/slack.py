"""Failed runs to Slack, by dagster-slack (`pip install 'laion-assets[slack]'`)."""

from __future__ import annotations

import dagster as dg
from dagster_slack import SlackResource

from laion_assets.notices import Notice
from laion_assets.settings import Notify
from resources.notifiers import Notifier


class SlackNotifier(Notifier):
    token: str
    channel: str
    api: str

    def tell(self, notice: Notice) -> None:
        client = SlackResource(token=self.token).get_client()
        client.base_url = self.api
        # The text may quote what strangers wrote: no links, mentions or markup are made of it.
        plain = notice.text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        client.chat_postMessage(
            channel=self.channel, text=plain, mrkdwn=False, parse="none", unfurl_links=False
        )


def slack_notifier(options: Notify) -> SlackNotifier:
    return SlackNotifier(
        token=dg.EnvVar(options.slack_token_variable),
        channel=options.slack_channel,
        api=options.slack_api,
    )
