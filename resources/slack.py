"""Failed runs to Slack, by dagster-slack (`pip install 'laion-assets[slack]'`)."""

from __future__ import annotations

from typing import Final

import dagster as dg
from dagster_slack import SlackResource
from slack_sdk.errors import SlackApiError

from laion_assets.settings import Notify
from resources.notifier import Notice, NoticeError, Notifier

_TIMEOUT_S: Final = 5


class SlackNotifier(Notifier):
    token: str
    channel: str
    api: str

    def tell(self, notice: Notice) -> None:
        client = SlackResource(token=self.token).get_client()
        client.base_url = self.api
        # A sensor's tick has no time for more, and the next ones try again.
        client.timeout, client.retry_handlers = _TIMEOUT_S, []
        # The text may quote what strangers wrote: no links, mentions or markup are made of it.
        plain = notice.text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        try:
            client.chat_postMessage(
                channel=self.channel, text=plain, mrkdwn=False, parse="none", unfurl_links=False
            )
        except SlackApiError as error:
            raise NoticeError(f"answered {error.response['error']}") from None


def slack_notifier(options: Notify) -> SlackNotifier:
    return SlackNotifier(
        token=dg.EnvVar(options.slack_token_variable),
        channel=options.slack_channel,
        api=options.slack_api,
    )
