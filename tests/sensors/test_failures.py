"""One notice of each failed run: real runs that fail, real servers that are down and recover."""

import http.server
import json
import socket
import time
import urllib.parse
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import dagster as dg
import pytest
import sqlalchemy as sa
from dagster._core.storage.runs.schema import RunsTable

from laion_assets.defs.partitions import crawls, partition_key, segment_partitions
from laion_assets.defs.retention import PRUNED_TAGS
from laion_assets.layout import SegmentKey
from laion_assets.settings import Notify
from resources import slack, webhook
from resources.notifier import Notice, NoticeError
from resources.notifiers import notifiers
from resources.webhook import post
from sensors import failures
from sensors.failures import failure_sensor, resource_of
from tests.conftest import Loopback

KEY = SegmentKey("CC-MAIN-2000-05", "01")


class Receiver(Loopback):
    """Takes POST requests, or answers with the ``status`` that is set."""

    def __init__(self) -> None:
        self.status = 200
        self.answer: dict[str, bool | str] = {"ok": True}
        self.taken: list[tuple[str, dict[str, str], bytes]] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if outer.status == 200:
                    outer.taken.append((self.path, dict(self.headers), body))
                self.send_response(outer.status)
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(json.dumps(outer.answer).encode())

            def log_message(self, *_: object) -> None:
                pass

        super().__init__(Handler)


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    monkeypatch.setattr(webhook, "_BACK_OFF_S", 0.0)
    receiver = Receiver()
    yield receiver
    receiver.close()


@dg.asset(partitions_def=segment_partitions(2))
def doomed() -> None:
    try:
        raise OSError("no space left")
    except OSError as error:
        raise RuntimeError("the part could not be written") from error


class World:
    def __init__(self, instance: dg.DagsterInstance, options: Notify) -> None:
        instance.add_dynamic_partitions(crawls.name or "", [KEY.crawl])
        self.instance = instance
        self.clock = 1_000.0  # behind the runs' clock: nothing is too old for a notice
        self.cursor: str | None = None
        tell = notifiers(options)
        self.defs = dg.Definitions(
            assets=[doomed],
            jobs=[dg.define_asset_job("segment", selection=["doomed"])],
            sensors=[failure_sensor(options, list(tell))],
            resources={resource_of(name): notifier for name, notifier in tell.items()},
            executor=dg.in_process_executor,
        )

    def fail(self) -> dg.DagsterRun:
        result = self.defs.resolve_job_def("segment").execute_in_process(
            instance=self.instance, partition_key=partition_key(KEY), raise_on_error=False
        )
        assert not result.success
        return result.dagster_run

    def tick(self) -> str:
        context = dg.build_sensor_context(
            instance=self.instance,
            instance_ref=self.instance.get_ref(),
            cursor=self.cursor,
            repository_def=self.defs.get_repository_def(),
            resources=self.defs.resources,
        )
        result = self.defs.get_sensor_def("failure_sensor").evaluate_tick(context)
        self.cursor = result.cursor
        return result.skip_message or ""


@pytest.fixture
def world(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Notify], World]:
    def make(options: Notify) -> World:
        here = World(instance, options)
        monkeypatch.setattr(failures, "now", lambda: here.clock)
        here.tick()
        return here

    return make


def test_a_webhook_that_is_down_gets_each_notice_once_when_it_is_back(
    world: Callable[[Notify], World],
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("LAION_ASSETS_WEBHOOK_URL", f"{receiver.url}/secret")
    monkeypatch.setenv("HOOK_TOKEN", "token")
    here = world(Notify(to=("log", "webhook"), webhook_token_variable="HOOK_TOKEN"))
    assert here.tick() == "0 notices sent, 0 runs waiting for one"
    receiver.status = 503
    runs = [here.fail(), here.fail()]
    message = here.tick()
    assert message.startswith("2 notices sent, 2 runs waiting for one; webhook is down: ")
    assert "secret" not in message
    assert [record.name for record in caplog.records].count("resources.notifiers") == 2

    receiver.status = 200
    assert "2 runs waiting" in here.tick()  # it is left alone for a while
    here.clock += 61
    assert here.tick() == "2 notices sent, 0 runs waiting for one"
    assert here.tick() == "0 notices sent, 0 runs waiting for one"
    here.cursor = None  # as after a reset in the UI
    here.tick()
    assert here.tick() == "0 notices sent, 0 runs waiting for one"

    assert sorted(headers["Idempotency-Key"] for _, headers, _ in receiver.taken) == sorted(
        run.run_id for run in runs
    )
    path, headers, body = receiver.taken[0]
    notice = Notice.model_validate_json(body)
    assert (path, headers["Authorization"]) == ("/secret", "Bearer token")
    assert (notice.job, notice.partition, notice.step) == ("segment", str(KEY), "doomed")
    assert notice.error == "OSError: no space left"
    assert notice.link == f"http://127.0.0.1:3000/runs/{notice.run_id}"


def test_secrets_show_nowhere(
    world: Callable[[Notify], World],
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("LAION_ASSETS_WEBHOOK_URL", f"{receiver.url}/secret\n")
    monkeypatch.setenv("HOOK_TOKEN", "sec\nret")  # no header may hold it
    here = world(Notify(to=("webhook",), webhook_token_variable="HOOK_TOKEN"))
    here.fail()
    caplog.clear()
    message = here.tick()
    assert message.endswith("webhook is down: NoticeError: no answer: ValueError")
    assert here.cursor
    for text in (here.cursor, caplog.text):
        assert "sec" not in text.replace("seconds", "")

    here.clock += 61
    monkeypatch.setenv("HOOK_TOKEN", "token\n")
    assert here.tick().startswith("1 notices sent")
    [(path, headers, _)] = receiver.taken
    assert (path, headers["Authorization"]) == ("/secret", "Bearer token")


def test_slack_gets_notices_by_its_own_library(
    world: Callable[[Notify], World], receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLACK_BOT_TOKEN", "xoxb-1")
    options = Notify(to=("slack",), slack_channel="#crawls", slack_api=f"{receiver.url}/api/")
    here = world(options)
    here.fail()
    receiver.answer = {"ok": False, "error": "channel_not_found"}
    assert here.tick().endswith("slack is down: NoticeError: answered channel_not_found")
    receiver.answer = {"ok": True}
    receiver.taken.clear()
    here.clock += 61
    here.tick()
    here.tick()
    [(path, headers, body)] = receiver.taken
    assert (path, headers["Authorization"]) == ("/api/chat.postMessage", "Bearer xoxb-1")
    sent = (
        json.loads(body) if body.startswith(b"{") else dict(urllib.parse.parse_qsl(body.decode()))
    )
    assert sent["channel"] == "#crawls"
    assert f"segment of {KEY} failed at doomed" in sent["text"]


def test_a_slack_that_does_not_answer_holds_up_no_other_notifier(
    world: Callable[[Notify], World], receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slack, "_TIMEOUT_S", 0.3)
    monkeypatch.setattr(failures, "_TICK_S", 0.2)
    monkeypatch.setenv("SLACK_BOT_TOKEN", "xoxb-1")
    monkeypatch.setenv("LAION_ASSETS_WEBHOOK_URL", receiver.url)
    with socket.create_server(("127.0.0.1", 0)) as hole:
        api = f"http://127.0.0.1:{hole.getsockname()[1]}/"
        here = world(Notify(to=("slack", "webhook"), slack_channel="#crawls", slack_api=api))
        here.fail()
        assert "1 notices sent, 1 runs waiting for one; slack is down: " in here.tick()
        assert len(receiver.taken) == 1
        hole.setblocking(False)
        hole.accept()[0].close()
        with pytest.raises(BlockingIOError):  # there was one request
            hole.accept()


def test_pruning_the_logs_of_an_old_failure_sends_no_notice(
    world: Callable[[Notify], World],
) -> None:
    here = world(Notify())
    here.clock = time.time()
    here.tick()
    run = here.fail()
    ended = here.clock - 40 * 86_400
    with here.instance.run_storage.connect() as connection:  # type: ignore[attr-defined]
        touched = datetime.fromtimestamp(ended, UTC).replace(tzinfo=None)
        old = sa.update(RunsTable).where(RunsTable.c.run_id == run.run_id)
        connection.execute(old.values(update_timestamp=touched, end_time=ended))
    here.instance.add_run_tags(run.run_id, PRUNED_TAGS)
    assert here.tick() == "0 notices sent, 0 runs waiting for one"


def test_runs_that_dagster_retries_may_be_left_out(world: Callable[[Notify], World]) -> None:
    here = world(Notify(retried=False))
    run = here.fail()
    here.instance.add_run_tags(run.run_id, {"dagster/will_retry": "true"})
    assert here.tick() == "0 notices sent, 0 runs waiting for one"


def test_a_missing_answer_is_reported_without_the_address(receiver: Receiver) -> None:
    notice = Notice(
        run_id="1",
        job="segment",
        partition=None,
        step=None,
        error="lost",
        failed_at="",
        retried=True,
        link="",
    )
    receiver.status = 302
    with pytest.raises(NoticeError, match="answered 302"):
        post(f"{receiver.url}/secret", notice)
    receiver.close()
    with pytest.raises(NoticeError, match=r"^no answer: NewConnectionError$"):
        post(f"{receiver.url}/secret", notice)
