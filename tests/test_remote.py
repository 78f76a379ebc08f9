"""The client of reward servers: it scores as one would here, and whatever a server does, a run survives it."""

import contextlib
import json
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from reward_servers import Program, Scripted, serving, until
from runs import distance, metrics, run
from unmask.cli import main
from unmask.errors import RunError, UserError
from unmask.report import write_report
from unmask.rewards import (
    PerItem,
    Score,
    ShapesDrawn,
    SudokuSolved,
    UserReward,
    UserRewardError,
    Weighted,
    by_name,
    combine,
)
from unmask.rewards.http import Patience
from unmask.rewards.remote import Remote
from unmask.tasks import Shapes, Sudoku

BRIEF = Patience(connect=1, read=0.3, tries=2, total=3, ready=0.3)
ROWS = [Sudoku().rows("train")[i] for i in range(40)]
TEXTS = [row["completion"] if i % 3 else row["puzzle"] for i, row in enumerate(ROWS)]
RIGHT = [float(score.value) for score in SudokuSolved()(TEXTS, ROWS)]


def reply(body: bytes, **changed) -> bytes:
    """What a sound server would say: score 1 for everything; with changes."""
    asked = json.loads(body)
    items = [{"score": 1.0, "status": "ok", "details": {}} for _ in asked["items"]]
    sound = {"model_version": "1", "request_id": asked["request_id"], "items": items}
    return json.dumps(sound | changed).encode()


def failing(remote: Remote) -> list[str]:
    """The reasons for which nothing was judged."""
    with pytest.warns(UserWarning, match=r"did not judge 40 of 40 completions"):
        scores = remote(TEXTS, ROWS)
    assert {score.status for score in scores} == {"infra_error"} and len(scores) == 40
    return sorted({score.details["reason"] for score in scores})


# -- the same as here


def test_texts_are_scored_as_they_are_here():
    strange = ["", "x" * 65_537, "1234" * 4 + "<|endoftext|>1", "[MASK]" * 2, "\0\u202e\uff11", "e<e>", "m<m>"]
    texts, rows = [*TEXTS, *strange, ROWS[1]["answer"] + "<e>junk"], [*ROWS, *[ROWS[1]] * 8]
    here = SudokuSolved().for_tokens(("<e>",), ("<m>",))(texts, rows)
    with serving(SudokuSolved()) as url:
        there = Remote(url, "sudoku").for_tokens(("<e>",), ("<m>",))
        assert there.label == "sudoku"
        assert there(texts, rows) == here
        assert there(["half a \ud800"], rows[:1]) == [Score.invalid("not Unicode text")]
        assert there(texts[:1], rows[:1]) == here[:1] and there([], []) == []
        assert there(texts[::-1], rows[::-1])[::-1] == there(texts, rows)


def test_pictures_are_scored_as_they_are_here():
    rows = [Shapes().rows("train")[i] for i in range(20)]
    images = [row["completion"] for row in rows[:10]] + [Image.effect_noise((32, 32), 60).convert("RGB")] * 10
    with serving(ShapesDrawn()) as url:
        assert Remote(url, "shapes", batch=7)(images, rows) == ShapesDrawn()(images, rows)


def test_a_function_of_the_user_fails_as_it_does_here(tmp_path):
    file = tmp_path / "own.py"
    file.write_text("def own(completions, answer, **columns):\n    return [1 / len(c) for c in completions]\n")
    with serving(UserReward(str(file), "own")) as url:
        there = Remote(url, "own")
        assert there(["ab"], [{"answer": 1}]) == [Score.ok(0.5)]
        with pytest.raises(UserRewardError, match=r"own at http.*ZeroDivisionError: division by zero") as caught:
            there(["ab", ""], [{"answer": 1}] * 2)
        assert str(tmp_path) not in str(caught.value)


def test_a_row_that_the_reward_cannot_use_is_the_users_mistake():
    with serving(by_name("number")) as url, pytest.raises(UserError, match="row 7 needs a column 'answer'"):
        Remote(url, "number")(["\\boxed{1}"], [{"id": 7}])


@pytest.mark.parametrize(
    ("column", "says"),
    [
        ({"x": "y" * 2**15}, "meta: .*at most 16384"),
        ({"x": Path("a")}, "meta.x"),
        ({"x": float("nan")}, "finite number"),
        ({"prompt": "p" * 9000}, "prompt.*at most 8192"),
    ],
)
def test_a_row_that_cannot_travel_is_named(column, says):
    with pytest.raises(UserError, match=f"row r1 cannot be sent: .*{says}"):
        Remote("http://127.0.0.1:1", "sudoku")(["x"], [{"id": "r1", **column}])


def test_the_answer_to_learn_from_stays_here():
    with Scripted(lambda _, body: (200, {}, reply(body))) as server:
        Remote(server.url, "x")(["a"], [{"id": "r", "prompt": "p", "completion": Image.new("L", (9, 9)), "c": 1}])
    (item,) = json.loads(server.bodies[0])["items"]
    assert item == {"prompt": "p", "completion": "a", "meta": {"id": "r", "c": 1}}


# -- batches


@dataclass(frozen=True)
class Crowd(PerItem):
    """Notes how many completions come in one call."""

    name = "crowd"
    calls: list = field(default_factory=list)

    def __call__(self, completions, rows):
        self.calls.append(len(completions))
        return super().__call__(completions, rows)

    def judge(self, completion, row):
        return Score.ok(float(completion))


def test_requests_are_small_and_few_at_a_time():
    inside, most, lock = 0, 0, threading.Lock()

    def answer(_, body):
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        time.sleep(0.02)
        with lock:
            inside -= 1
        return 200, {}, reply(body)

    with Scripted(answer) as server:
        scores = Remote(server.url, "x", batch=3, requests=2)(TEXTS, ROWS)
    assert {score.value for score in scores} == {1.0} and len(scores) == 40
    assert most == 2
    sizes = [len(json.loads(body)["items"]) for body in server.bodies]
    assert sorted(sizes) == [1, *[3] * 13]


def test_large_pictures_are_spread_over_requests():
    images = [Image.new("RGB", (4096, 4096))] * 5
    remote = Remote("http://127.0.0.1:1", "x")
    items = [(remote._item(image, {}), image.width * image.height) for image in images]
    assert [len(batch) for batch in remote._batches(items)] == [4, 1]


def test_order_is_kept_whatever_arrives_first():
    def answer(number, body):
        time.sleep(0.05 if number == 0 else 0)
        items = [{"score": float(item["completion"]), "status": "ok"} for item in json.loads(body)["items"]]
        return 200, {}, reply(body, items=items)

    with Scripted(answer) as server:
        scores = Remote(server.url, "x", batch=4)([str(i) for i in range(40)], ROWS)
    assert [score.value for score in scores] == list(range(40))


# -- what a server may do


def items(*scores, **more) -> list[dict]:
    return [{"score": score, "status": "ok", **more} for score in scores]


HOSTILE = {
    "garbage": (lambda b: (200, {}, b"\x80\x04\x95garbage"), "not as the protocol says"),
    "nothing": (lambda b: (200, {}, b""), "not as the protocol says"),
    "a page": (lambda b: (200, {"Content-Type": "text/html"}, b"<html>hello</html>"), "not as the protocol says"),
    "NaN": (lambda b: (200, {}, reply(b, items=items(*[float("nan")] * 16))), "not as the protocol says"),
    "infinity": (lambda b: (200, {}, reply(b, items=items(*[float("-inf")] * 16))), "not as the protocol says"),
    "1e999": (lambda b: (200, {}, reply(b).replace(b"1.0", b"1e999")), "not as the protocol says"),
    "texts": (lambda b: (200, {}, reply(b, items=items(*["1"] * 16))), "not as the protocol says"),
    "no scores": (lambda b: (200, {}, reply(b, items=items(*[None] * 16))), "not as the protocol says"),
    "unknown status": (lambda b: (200, {}, reply(b, items=items(1, status="good"))), "not as the protocol says"),
    "deep": (lambda b: (200, {}, b"[" * 500_000), "not as the protocol says"),
    "deep details": (lambda b: (200, {}, reply(b)[:-2] + b', "x": ' + b"[" * 9999), "not as the protocol says"),
    "too few": (lambda b: (200, {}, reply(b, items=items(1.0))), "1 scores for"),
    "too many": (lambda b: (200, {}, reply(b, items=items(*[1.0] * 99))), "99 scores for"),
    "none": (lambda b: (200, {}, reply(b, items=[])), "0 scores for"),
    "another id": (lambda b: (200, {}, reply(b, request_id=str(uuid4()))), "an answer to another request"),
    "huge": (lambda b: (200, {}, b" " * (2**24 + 1)), "more than 16777216 bytes"),
    "huge by its own words": (lambda b: (200, {"Content-Length": str(10**15)}, b"{}"), "no answer within|ReadTimeout"),
    "cut short": (lambda b: (200, {"Content-Length": "100000"}, reply(b)), "ReadTimeout"),
    "packed": (lambda b: (200, {"Content-Encoding": "gzip"}, b"\x1f\x8b" + bytes(100)), "not as the protocol says"),
    "hangs up": (lambda b: (0, {}, b""), "RemoteProtocolError|ReadError"),
    "elsewhere": (lambda b: (302, {"Location": "http://169.254.169.254/"}, b""), "HTTP 302"),
    "refuses": (lambda b: (400, {}, b'{"error": {"type": "schema", "message": "no"}}'), "HTTP 400: no"),
    "fails": (lambda b: (500, {}, b"Traceback"), "HTTP 500: no reason is given"),
    "is down": (lambda b: (503, {}, b""), "HTTP 503, 2 times"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_what_a_server_does_wrong_masks_and_never_scores(what, monkeypatch):
    monkeypatch.setattr("unmask.rewards.http._CHANCE", Hurried())
    answer, says = HOSTILE[what]
    with Scripted(lambda _, body: answer(body)) as server:
        reasons = failing(Remote(server.url, "x", patience=BRIEF))
    assert all(re.search(says, reason) for reason in reasons), reasons
    tries = BRIEF.tries if what in ("huge by its own words", "cut short", "hangs up", "is down") else 1
    assert len(server.bodies) == 3 * tries


class Hurried:
    """In place of chance: no pauses."""

    def uniform(self, low, high):
        return 0.0


def test_a_late_answer_and_one_that_never_ends_are_given_up(monkeypatch):
    monkeypatch.setattr("unmask.rewards.http._CHANCE", Hurried())
    over = threading.Event()

    def late(_, body):
        over.wait(10)
        return 200, {}, reply(body)

    with Scripted(late) as server:
        (reason,) = failing(Remote(server.url, "x", batch=64, patience=BRIEF))
        assert "ReadTimeout, 2 times" in reason
        over.set()

    with dripping() as url:
        start = time.monotonic()
        (reason,) = failing(Remote(url, "x", batch=64, patience=Patience(read=0.5, total=1.0)))
        assert "no answer within 1 s" in reason and time.monotonic() - start < 60


@contextlib.contextmanager
def dripping():
    """The url of a server that sends a byte now and then, for ever: reading one never times out."""
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def drip():
            connection, _ = listening.accept()
            with connection, contextlib.suppress(OSError):
                connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
                while not over.wait(0.05):
                    connection.sendall(b"x")

        threading.Thread(target=drip, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        over.set()


@pytest.mark.parametrize("status", [429, 502, 503, 504, 0])
def test_what_may_pass_is_tried_again_with_the_same_bytes(status, monkeypatch):
    monkeypatch.setattr("unmask.rewards.http._CHANCE", Hurried())
    with Scripted(lambda number, body: (status, {}, b"") if number < 2 else (200, {}, reply(body))) as server:
        scores = Remote(server.url, "x", batch=64)(TEXTS, ROWS)
    assert {score.status for score in scores} == {"ok"}
    assert len(server.bodies) == 3 and len(set(server.bodies)) == 1


def test_retry_after_is_honoured(monkeypatch):
    slept = []

    async def sleep(seconds):
        slept.append(seconds)

    monkeypatch.setattr("unmask.rewards.http.asyncio.sleep", sleep)
    script = [(429, {"Retry-After": "7"}, b""), (503, {"Retry-After": "9" * 30}, b"")]
    with Scripted(lambda number, body: script[number] if number < 2 else (200, {}, reply(body))) as server:
        Remote(server.url, "x", batch=64)(TEXTS, ROWS)
    assert slept == [7.0, 30.0]


def test_pauses_grow_and_differ(monkeypatch):
    slept = []

    async def sleep(seconds):
        slept.append(seconds)

    monkeypatch.setattr("unmask.rewards.http.asyncio.sleep", sleep)
    with Scripted(lambda _, body: (503, {}, b"")) as server, pytest.warns(UserWarning):
        Remote(server.url, "x", batch=8)(TEXTS, ROWS)
    assert len(set(slept)) == 10 and all(0.5 <= pause <= 2 for pause in slept)
    assert sum(pause <= 1 for pause in slept) >= 5 and sum(pause > 1 for pause in slept) >= 4


def test_a_server_that_is_not_there_masks_after_the_deadline():
    reasons = failing(Remote("http://127.0.0.1:9", "x", patience=Patience(connect=1, total=0.5)))
    assert len(reasons) == 1 and "no answer within 0.5 s; last: ConnectError" in reasons[0]


def test_a_restart_within_the_deadline_loses_nothing():
    program = Program("sudoku")
    remote = by_name(f"remote:{program.addresses[0]}").for_tokens(())
    program.kill()
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(remote, TEXTS, ROWS)
        program.start()
        assert [score.value for score in waiting.result(60)] == RIGHT
    program.kill()


def test_proxies_of_the_environment_are_not_asked_for_this_machine(monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with serving(SudokuSolved()) as url:
        assert [score.value for score in Remote(url, "sudoku")(TEXTS, ROWS)] == RIGHT


def test_the_token_is_taken_from_the_environment(monkeypatch):
    with serving(SudokuSolved(), token="s3cret") as url:
        for token in ("", "wrong"):
            monkeypatch.setenv("UNMASK_REWARD_TOKEN", token)
            with pytest.raises(UserError, match=r"HTTP 401.*set UNMASK_REWARD_TOKEN"):
                Remote(url, "sudoku").check()
        monkeypatch.setenv("UNMASK_REWARD_TOKEN", "s3cret")
        remote = Remote(url, "sudoku")
        remote.check()
        assert [score.value for score in remote(TEXTS, ROWS)] == RIGHT
        assert "s3cret" not in repr(remote)


def test_at_its_start_a_run_asks_whether_the_server_would_judge():
    says = "HTTP 404: there is no reward 'hps'; this server has sudoku"
    with serving(SudokuSolved()) as url, pytest.raises(UserError, match=says):
        by_name(f"remote:{url}/hps").for_tokens(())
    with pytest.raises(UserError, match=r"not ready after 0.3 s; start it with `unmask serve`"):
        Remote("http://127.0.0.1:9", "x", patience=BRIEF).for_tokens(())
    may_load = threading.Event()

    @dataclass(frozen=True)
    class Slow(SudokuSolved):
        def for_tokens(self, end, mask=()):
            may_load.wait(20)
            return self

    with serving(Slow()) as url, ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(Remote(url, "sudoku").check)
        until(lambda: waiting.running())
        may_load.set()
        waiting.result(20)


def test_settings_stand_where_the_reward_is_named(tmp_path):
    settings = "batch=7, requests=2, patience.total=9, patience.tries=1"
    patience = Patience(total=9, tries=1)
    assert by_name(f"remote:http://h:1/a({settings})") == Remote(
        "http://h:1", "a", batch=7, requests=2, patience=patience
    )
    file = tmp_path / "far.py"
    file.write_text("from unmask.rewards.remote import Remote\nfar = Remote('http://h:1', 'a', batch=3)\n")
    assert by_name(f"{file}:far") == Remote("http://h:1", "a", batch=3)
    for wrong, says in (
        ("url=http://x", "reward remote: 'url=http://x' is no OPTION=VALUE with one of its options: batch, requests"),
        ("batch=65", r"batch must be in \[1, 64\]"),
        ("patience=3", "'patience=3' is no OPTION=VALUE"),
        ("patience.total=-1", "patience: connect, read, total and ready must be positive"),
    ):
        with pytest.raises(UserError, match=says):
            by_name(f"remote:http://h:1/a({wrong})")


@pytest.mark.parametrize("settings", [{"batch": 0}, {"batch": 65}, {"requests": 0}, {"model": ""}, {"url": ""}])
def test_settings_that_make_no_sense(settings):
    with pytest.raises(UserError):
        Remote(**{"url": "http://h", "model": "m", **settings})
    with pytest.raises(UserError, match="must be positive"):
        Patience(read=0)


# -- several rewards at once


@dataclass(frozen=True)
class Meeting(PerItem):
    """Gives scores only if another one is asked at the same time."""

    name = "meeting"
    barrier: threading.Barrier = field(default_factory=lambda: threading.Barrier(2, timeout=10))
    value: float = 1.0

    def __call__(self, completions, rows):
        self.barrier.wait()
        return super().__call__(completions, rows)

    def judge(self, completion, row):
        return Score.ok(self.value)


def test_rewards_of_a_batch_are_asked_at_the_same_time():
    barrier = threading.Barrier(2, timeout=10)
    judged = combine([Weighted(Meeting(barrier, v)) for v in (1.0, 2.0)], ["x"] * 3, [{}] * 3)
    assert judged.total == [3.0] * 3 and list(judged.components) == ["meeting", "meeting-2"]
    assert [scores[0].value for scores in judged.components.values()] == [1.0, 2.0]


def test_functions_of_the_user_stay_in_the_thread_of_the_run(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(
        "import threading\n"
        "def one(completions, **columns):\n    return [float(threading.current_thread() is threading.main_thread())]\n"
        "def two(completions, **columns):\n    raise KeyError('two')\n"
    )
    own = [Weighted(UserReward(str(file), name)) for name in ("one", "two")]
    barrier = threading.Barrier(2, timeout=10)
    others = [Weighted(Meeting(barrier)), Weighted(Meeting(barrier))]
    judged = combine([others[0], own[0], others[1]], ["x"], [{}])
    assert judged.components["one"][0].value == 1.0 and judged.total == [3.0]
    with pytest.raises(UserRewardError, match=r"two in .* failed on row 0: KeyError"):
        combine([others[0], own[1], others[1]], ["x"], [{}])


# -- runs


def test_a_run_is_the_same_whether_its_reward_is_here_or_there(tmp_path):
    run(tmp_path, "here", "--reward", "sudoku", "--steps", "2")
    with serving(SudokuSolved()) as url:
        run(tmp_path, "there", "--reward", f"remote:{url}/sudoku", "--steps", "2")
    assert distance(tmp_path / "here", tmp_path / "there") == 0


def test_settings_of_a_remote_reward_reach_a_run(tmp_path):
    with Scripted(lambda _, body: (200, {}, reply(body))) as server:
        run(tmp_path, "run", "--reward", f"remote:{server.url}/ones(batch=5, patience.total=9)", "--steps", "1")
    sizes = [len(json.loads(body)["items"]) for body in server.bodies]
    assert max(sizes) == 5 and sum(sizes) == 16
    assert [row["reward/ones"] for row in metrics(tmp_path / "run")] == [1.0]


MORTAL = """
import os, pathlib
lives = pathlib.Path(__file__).with_name("lives")
def ones(completions, puzzle, **columns):
    calls = len(lives.read_text()) if lives.exists() else 0
    lives.write_text("x" * (calls + 1))
    if calls == 1:  # in the middle of the second batch
        os._exit(9)
    return [(text.count("1") + 0.1 * row.count("1")) / 16 for text, row in zip(completions, puzzle)]
"""


def test_a_server_that_dies_and_comes_back_in_time_changes_nothing(tmp_path):
    (tmp_path / "mortal").mkdir()
    file = tmp_path / "mortal" / "own.py"
    file.write_text(MORTAL)
    program = Program(f"{file}:ones")
    with ThreadPoolExecutor(1) as threads:
        again = threads.submit(program.start_again)
        run(tmp_path, "there", "--reward", f"remote:{program.addresses[0]}")
        again.result(20)
    program.kill()
    run(tmp_path, "here")
    assert distance(tmp_path / "here", tmp_path / "there") == 0
    assert metrics(tmp_path / "here") == metrics(tmp_path / "there")


@dataclass(frozen=True)
class Cut(Remote):
    """Its server is dead while the second batch is judged."""

    program: Program | None = None
    calls: list = field(default_factory=list)

    def __call__(self, completions, rows):
        self.calls.append(len(completions))
        if len(self.calls) == 2:
            self.program.kill()
        scores = super().__call__(completions, rows)
        if len(self.calls) == 2:
            self.program.start()
        return scores

    def for_tokens(self, end, mask=()):
        return self


def test_a_server_that_stays_away_costs_its_samples_and_nothing_else(tmp_path, monkeypatch):
    program = Program("sudoku")
    url = program.addresses[0].rpartition("/")[0]
    cut = Cut(url, "sudoku", patience=Patience(connect=1, total=0.5), program=program)
    monkeypatch.setattr("unmask.tasks.base.by_name", lambda spec, own: cut)
    more = ["--reward", "cut", "--save_every", "1", "--optimizer.weight_decay", "0.1", "--optimizer.warmup", "0"]
    with pytest.warns(UserWarning, match="did not judge 16 of 16 completions"):
        run(tmp_path, "run", *more, "--max_dropped_share", "1", "--keep_checkpoints", "3")
    rows = metrics(tmp_path / "run")
    assert [row["rollout/dropped_share"] for row in rows] == [0, 1, 0]
    assert [row["reward/sudoku_infra_error"] for row in rows] == [0, 1, 0]
    assert [row.get("update/skipped") for row in rows] == [None, 1, None]
    assert "rollout/reward" not in rows[1] and "reward/sudoku" not in rows[1] and "rollout/success" in rows[1]
    before, during, after = (
        load_file(tmp_path / "run" / "checkpoints" / f"step-{step}" / "trainable.safetensors") for step in (1, 2, 3)
    )
    assert all(torch.equal(before[name], during[name]) for name in before)
    assert all(tensor.isfinite().all() for tensor in after.values())
    assert write_report(tmp_path / "run").is_file()
    program.kill()

    cut.calls.clear()
    with pytest.warns(UserWarning), pytest.raises(RunError, match=r"step 2: rewards failed for 100%.*--resume goes on"):
        program.start()
        run(tmp_path, "stopped", *more)
    assert run(tmp_path, "stopped", *more, resume=True).step == 3
    assert [row["rollout/dropped_share"] for row in metrics(tmp_path / "stopped")] == [0, 0, 0]
    program.kill()


def test_a_run_outlives_a_server_that_says_nonsense_in_every_way(tmp_path):
    over = threading.Event()

    def answer(number: int, body: bytes):
        step, place = divmod(number - 1, 4)  # the first request asks whether the server is sound
        if step == 1 and place < 3:
            return HOSTILE[("garbage", "huge", "NaN")[place]][0](body)
        if step == 1:
            over.wait(5)  # late
        return 200, {}, reply(body)

    options = "batch=4, requests=1, patience.read=1, patience.tries=1"
    with Scripted(answer) as server, pytest.warns(UserWarning, match="did not judge 16 of 16 completions"):
        word = f"remote:{server.url}/ones({options})"
        run(tmp_path, "run", "--reward", word, "--max_dropped_share", "1")
        over.set()
    rows = metrics(tmp_path / "run")
    assert [row["rollout/dropped_share"] for row in rows] == [0, 1, 0]
    assert [row["reward/ones_infra_error"] for row in rows] == [0, 1, 0]
    assert len(server.bodies) == 13


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_sudoku_is_learned_from_a_server_that_is_killed_in_the_middle(tmp_path):
    program = Program("sudoku")
    folder = tmp_path / "run"

    def dropped() -> list[float]:
        return [row["rollout/dropped_share"] for row in metrics(folder)]

    def kill_once() -> None:
        until(lambda: (folder / "metrics.jsonl").is_file() and len(metrics(folder)) >= 8, 900)
        program.kill()
        until(lambda: any(dropped()), 300)
        program.start()

    reward = f"remote:{program.addresses[0]}(patience.connect=1, patience.total=2)"
    words = ["--out", str(folder), "--reward", reward, "--max_dropped_share", "1"]
    with ThreadPoolExecutor(1) as threads:
        killed = threads.submit(kill_once)
        assert main(["train", "--config", "demo-sudoku", *words]) == 0
        killed.result(60)
    program.kill()
    assert len(dropped()) == 25 and any(dropped()[8:]) and not any(dropped()[:8] + dropped()[-1:])
    assert metrics(folder)[-1]["eval/success"] >= 0.75
