"""The reward server: what it answers, to whom, and that no request brings it down."""

import base64
import gc
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from schemathesis.specs.openapi.checks import positive_data_acceptance
from starlette.testclient import TestClient

from reward_servers import Program, serving, until
from unmask.cli import main
from unmask.errors import UserError
from unmask.rewards import PerItem, Reward, Score, ShapesDrawn, SudokuSolved, UserReward
from unmask.serve.app import Refusal, RewardApp
from unmask.serve.images import picture_of, pixels_of
from unmask.serve.worker import Worker
from unmask.tasks import Shapes, Sudoku

JSON = {"Content-Type": "application/json"}
PUZZLE = {"puzzle": "3421210003121230"}
RIGHT = "3421214343121234"


@dataclass(frozen=True)
class Told(PerItem):
    """The column `value`; remembers each call and notices a second thread."""

    name = "told"
    calls: list = field(default_factory=list)
    inside: threading.Lock = field(default_factory=threading.Lock)
    may_go: threading.Event = field(default_factory=threading.Event)

    def __call__(self, completions, rows):
        assert self.inside.acquire(blocking=False), "called from two threads"
        try:
            self.calls.append(list(completions))
            if "hold" in completions:
                self.may_go.wait(20)
            return super().__call__(completions, rows)
        finally:
            self.inside.release()

    def judge(self, completion, row):
        if "raise" in row:
            raise UserError("row 3 has no column 'answer' in /srv/data/rows.jsonl")
        return Score.ok(row["value"], seen=completion)


def client(*rewards: Reward, token: str | None = None) -> TestClient:
    app = RewardApp({reward.label: reward for reward in rewards}, token)
    for worker in app.workers.values():
        worker.started.result(20)
    return TestClient(app.app, raise_server_exceptions=False)


def request(model: str, *items: dict, **more) -> dict:
    return {"model": model, "request_id": str(uuid4()), "items": list(items), **more}


def told(completion: str, value: float = 0.0, **meta) -> dict:
    return {"completion": completion, "meta": {"value": value, **meta}}


def picture(image: Image.Image, form: str = "png", cut: int | None = None) -> dict:
    buffer = io.BytesIO()
    image.save(buffer, format=form, **({"lossless": True} if form == "webp" else {}))
    return as_image(buffer.getvalue()[:cut], form)


def as_image(content: bytes, form: str = "png") -> dict:
    return {"b64": base64.b64encode(content).decode(), "format": form}


def png_claiming(width: int, height: int) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b""))
    crc = [struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks]
    parts = [struct.pack(">I", len(d)) + k + d + c for (k, d), c in zip(chunks, crc, strict=True)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def problem(answer: httpx.Response, status: int) -> dict:
    """The error of an answer, which must have the agreed form and tell no secrets."""
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert set(body) == {"error"} and set(body["error"]) == {"type", "message"}
    text = body["error"]["message"]
    assert "Traceback" not in text and os.getcwd() not in text and "/srv" not in text and "\n" not in text
    return body["error"]


# -- answers


def test_texts_are_scored_as_they_are_here():
    rows = [Sudoku().rows("train")[i] for i in range(6)]
    texts = [rows[0]["completion"], "1" * 16, "", rows[3]["completion"] + "<|endoftext|>junk", "\uff11" * 16, "a[MASK]"]
    items = [
        {"prompt": row["prompt"], "completion": text, "meta": {"puzzle": row["puzzle"]}}
        for text, row in zip(texts, rows, strict=True)
    ]
    answer = client(SudokuSolved()).post("/v1/score", json=(sent := request("sudoku", *items)))
    assert answer.status_code == 200
    assert answer.json()["request_id"] == sent["request_id"] and "sudoku" in answer.json()["model_version"]
    for got, score in zip(answer.json()["items"], SudokuSolved()(texts, rows), strict=True):
        wanted = score.value if score.status == "ok" else None
        assert got == {"score": wanted, "status": score.status, "details": score.details}


@pytest.mark.parametrize("form", ["png", "webp"])
def test_pictures_are_scored_as_they_are_here(form):
    rows = [Shapes().rows("train")[i] for i in range(6)]
    images = [row["completion"] for row in rows[:5]] + [Image.new("RGB", (32, 32))]
    items = [
        {"image": picture(image, form), "meta": {"include": row["include"], "relation": row["relation"]}}
        for image, row in zip(images, rows, strict=True)
    ]
    answer = client(ShapesDrawn()).post("/v1/score", json=request("shapes", *items)).json()
    wanted = ShapesDrawn()(images, rows)
    assert [(i["score"], i["details"]) for i in answer["items"]] == [(s.value, s.details) for s in wanted]
    assert [i["score"] for i in answer["items"]] == [1, 1, 1, 1, 1, 0]


def test_every_status_crosses(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(
        "def own(completions, kind, **columns):\n    return [{'n': None, 'x': float('nan')}.get(k, 2) for k in kind]"
    )
    items = [{"completion": "", "meta": {"kind": kind}} for kind in "nxo"]
    with pytest.warns(UserWarning, match="nan or inf"):
        answer = client(UserReward(str(file), "own")).post("/v1/score", json=request("own", *items)).json()
    assert [(i["score"], i["status"]) for i in answer["items"]] == [
        (None, "not_applicable"),
        (None, "infra_error"),
        (2.0, "ok"),
    ]


def test_no_items_give_no_scores():
    reward = Told()
    answer = client(reward).post("/v1/score", json=request("told"))
    assert answer.json()["items"] == [] and not reward.calls


def test_prompts_may_be_chats():
    seen = []

    @dataclass(frozen=True)
    class Prompted(PerItem):
        name = "prompted"

        def judge(self, completion, row):
            seen.append(row["prompt"])
            return Score.ok(0)

    chat = [{"role": "user", "content": "hi"}]
    items = [{"prompt": prompt, "completion": ""} for prompt in ("hi", chat)]
    assert client(Prompted()).post("/v1/score", json=request("prompted", *items)).status_code == 200
    assert seen == ["hi", chat]


# -- many at once


def test_concurrent_clients_each_get_their_own_scores_from_one_thread():
    reward = Told()
    with serving(reward) as url:

        def ask(number: int) -> None:
            with httpx.Client(trust_env=False) as one:
                for turn in range(5):
                    values = [number + turn / 10 + i / 100 for i in range(number % 4 + 1)]
                    sent = request("told", *[told(str(v), v) for v in values])
                    answer = one.post(f"{url}/v1/score", json=sent).json()
                    assert answer["request_id"] == sent["request_id"]
                    assert [item["score"] for item in answer["items"]] == values
                    assert [item["details"]["seen"] for item in answer["items"]] == [str(v) for v in values]

        until(lambda: httpx.get(f"{url}/healthz", trust_env=False).status_code == 200)
        with ThreadPoolExecutor(12) as threads:
            list(threads.map(ask, range(12)))
    assert sum(map(len, reward.calls)) == 5 * sum(number % 4 + 1 for number in range(12))


def test_what_waits_is_judged_together_and_a_bad_request_spoils_no_other():
    reward = Told()
    worker = Worker(reward)
    held = worker.submit(["hold"], [{"value": 1}])
    until(lambda: reward.calls == [["hold"]])
    bad = worker.submit(["b", "c"], [{"value": 2}, {"value": 3, "raise": 1}])
    good = worker.submit(["d"], [{"value": 4}])
    reward.may_go.set()
    assert [score.value for score in held.result(20) + good.result(20)] == [1, 4]
    with pytest.raises(UserError, match="row 3"):
        bad.result(20)
    assert reward.calls == [["hold"], ["b", "c", "d"], ["b", "c"], ["d"]]


def test_a_row_that_does_not_fit_is_told():
    answer = client(Told()).post("/v1/score", json=request("told", told("c", 3, **{"raise": 1})))
    assert problem(answer, 422) == {"type": "row", "message": "row 3 has no column 'answer' in [path]"}


def test_a_request_sent_again_is_not_judged_again():
    reward = Told()
    http = client(reward)
    body = json.dumps(request("told", told("hold", 1)))
    with http, ThreadPoolExecutor(2) as threads:
        twice = [threads.submit(http.post, "/v1/score", content=body, headers=JSON) for _ in range(2)]
        until(lambda: len(reward.calls) == 1)
        reward.may_go.set()
        assert twice[0].result().content == twice[1].result().content
        assert http.post("/v1/score", content=body, headers=JSON).content == twice[0].result().content
        assert len(reward.calls) == 1
        other = body.replace("hold", "else")
        assert http.post("/v1/score", content=other, headers=JSON).json()["items"][0]["details"] == {"seen": "else"}


def test_a_failure_is_not_remembered(tmp_path):
    broken = tmp_path / "broken"
    broken.touch()

    @dataclass(frozen=True)
    class Flaky(PerItem):
        name = "flaky"

        def judge(self, completion, row):
            if broken.exists():
                raise RuntimeError(f"cannot read {broken}")
            return Score.ok(1)

    http, body = client(Flaky()), json.dumps(request("flaky", {"completion": "x"}))
    with http:
        error = problem(http.post("/v1/score", content=body, headers=JSON), 500)
        assert error["type"] == "reward_failed" and "RuntimeError: cannot read [path]" in error["message"]
        broken.unlink()
        assert http.post("/v1/score", content=body, headers=JSON).status_code == 200


def test_failed_requests_leave_nothing_behind():
    http = client(Told())
    wrong = [request("told", told("x", raise_=1), wrong=number) for number in range(4)]
    wrong += [request("told", told("x", **{"raise": number})) for number in range(4)]
    with http:
        for one in wrong:
            assert http.post("/v1/score", content=json.dumps(one), headers=JSON).status_code in (400, 422)
        gc.collect()
        assert not [one for one in gc.get_objects() if type(one) is Refusal]  # whose traceback holds the request


def test_a_full_server_says_when_to_come_back(monkeypatch):
    monkeypatch.setattr("unmask.serve.worker.MOST_WAITING", 2)
    reward = Told()
    http = client(reward)
    with http, ThreadPoolExecutor(1) as threads:
        held = threads.submit(http.post, "/v1/score", json=request("told", told("hold"), told("x")))
        until(lambda: len(reward.calls) == 1)
        answer = http.post("/v1/score", json=request("told", told("y")))
        assert problem(answer, 429)["type"] == "busy" and answer.headers["retry-after"] == "1"
        reward.may_go.set()
        assert held.result().status_code == 200
        assert http.post("/v1/score", json=request("told", told("y"))).status_code == 200


def test_loading_is_told_until_it_is_done():
    may_load = threading.Event()

    @dataclass(frozen=True)
    class Slow(Told):
        name = "slow"

        def for_tokens(self, end, mask=()):
            may_load.wait(20)
            return self

    app = RewardApp({"slow": Slow(), "told": Told()}, None)
    app.workers["told"].started.result(20)
    http = TestClient(app.app)
    answer = http.get("/healthz")
    assert answer.status_code == 503
    assert answer.json() == {"ready": False, "models": {"slow": "loading", "told": "ready"}}
    answer = http.post("/v1/score", json=request("told"))
    assert problem(answer, 503)["type"] == "loading" and answer.headers["retry-after"] == "1"
    may_load.set()
    app.workers["slow"].started.result(20)
    assert http.get("/healthz").json() == {"ready": True, "models": {"slow": "ready", "told": "ready"}}
    assert http.post("/v1/score", json=request("slow")).status_code == 200


# -- what is refused


GOOD = told("x", 1.0)
SCHEMA = {
    "no JSON": b"model=told",
    "a pickle": pickle.dumps({"images": [b"x"]}),
    "nothing": b"",
    "not UTF-8": b'{"model": "\xff"}',
    "a list": b"[]",
    "deeper than any stack": b"[" * 100_000,
    "no model": {"request_id": str(uuid4()), "items": []},
    "no id": {"model": "told", "items": []},
    "an id that is none": request("told") | {"request_id": "7"},
    "no items": {"model": "told", "request_id": str(uuid4())},
    "an unknown field": request("told", url="http://169.254.169.254/"),
    "an unknown field of an item": request("told", GOOD | {"file": "/etc/passwd"}),
    "an unknown field of an image": request("told", {"image": as_image(b"x") | {"url": "file:///etc/passwd"}}),
    "an unknown format": request("told", {"image": as_image(b"x", "gif")}),
    "neither text nor picture": request("told", {"meta": {}}),
    "both": request("told", GOOD | {"image": as_image(b"x")}),
    "too many items": request("told", *[GOOD] * 65),
    "a long prompt": request("told", GOOD | {"prompt": "x" * 8193}),
    "a long chat": request("told", GOOD | {"prompt": [{"role": "user", "content": "x" * 8193}]}),
    "a long completion": request("told", GOOD | {"completion": "x" * 65_537}),
    "large columns": request("told", GOOD | {"meta": {"value": 1.0, "x": "y" * 2**14}}),
    "deep columns": request("told", GOOD | {"meta": {"x": [[[[[[[[[1]]]]]]]]]}}),
    "numbers that are none": json.dumps(request("told", told("x", float("nan")))).encode(),
    "infinite numbers": json.dumps(request("told", told("x", float("inf")))).encode(),
    "a number for a text": request("told", {"completion": 3}),
    "half a character": b'{"model": "told\\ud800"}',
}


@pytest.mark.parametrize("what", SCHEMA)
def test_what_is_not_as_the_schema_says_is_400(what):
    body = SCHEMA[what]
    http = client(Told())
    answer = http.post("/v1/score", content=body if isinstance(body, bytes) else json.dumps(body), headers=JSON)
    assert problem(answer, 400)["type"] == "schema"
    assert http.post("/v1/score", json=request("told", GOOD)).status_code == 200


def test_the_limits_themselves_are_allowed():
    item = {"prompt": "x" * 8192, "completion": "y" * 65_536, "meta": {"value": 1.0, "x": [[[[[[[1]]]]]]]}}
    assert client(Told()).post("/v1/score", json=request("told", *[item] * 64)).status_code == 200


def test_other_addresses_methods_and_types():
    http = client(Told())
    assert problem(http.get("/"), 404)["type"] == "address"
    assert problem(http.get("/docs"), 404)
    assert problem(http.get("/v1/score"), 405)
    assert problem(http.post("/v1/score", content="{}", headers={"Content-Type": "text/plain"}), 415)
    error = problem(http.post("/v1/score", json=request("hps", GOOD)), 404)
    assert error == {"type": "unknown_model", "message": "there is no reward 'hps'; this server has told"}


def test_a_body_that_is_too_large_is_refused_before_it_is_read(monkeypatch):
    http = client(Told())
    answer = http.post("/v1/score", content=b"x", headers=JSON | {"Content-Length": str(2**26 + 1)})
    assert problem(answer, 413)["type"] == "too_large"
    monkeypatch.setattr("unmask.serve.app.MOST_BODY", 1000)
    assert problem(http.post("/v1/score", content=(b"x" * 100 for _ in range(11)), headers=JSON), 413)
    assert problem(http.post("/v1/score", content=(b"x" * 100 for _ in range(10)), headers=JSON), 400)


def test_a_body_that_does_not_come_is_not_waited_for(monkeypatch):
    monkeypatch.setattr("unmask.serve.app.BODY_SECONDS", 0.05)
    with serving(Told()) as url:
        until(lambda: httpx.get(f"{url}/healthz", trust_env=False).status_code == 200)
        may_end = threading.Event()

        def slow():
            yield b"{"
            may_end.wait(20)

        with ThreadPoolExecutor(1) as threads:
            asked = threads.submit(httpx.post, f"{url}/v1/score", content=slow(), headers=JSON, trust_env=False)
            threading.Timer(0.5, may_end.set).start()
            assert problem(asked.result(), 408)["type"] == "late"


@pytest.mark.parametrize("given", [None, "", "Bearer", "Bearer wrong", "Basic s3cret", "Bearer s3cret ", "s3cret"])
def test_without_the_token_nothing_is_read(given):
    http = client(Told(), token="s3cret")
    headers = JSON if given is None else JSON | {"Authorization": given}
    answer = http.post("/v1/score", content=b"no JSON at all", headers=headers)
    assert problem(answer, 401)["type"] == "token" and answer.headers["www-authenticate"] == "Bearer"
    assert http.get("/healthz").status_code == 200
    assert http.post("/v1/score", json=request("told", GOOD), headers={"Authorization": "Bearer s3cret"}).is_success


# -- pictures from strangers


GREEN = Image.new("RGB", (40, 30), "green")
BAD = {
    "nothing": as_image(b""),
    "no base64": {"b64": "$$$", "format": "png"},
    "no picture": as_image(b"hello, this is no picture at all"),
    "truncated PNG": picture(Image.effect_noise((64, 64), 50), cut=900),
    "truncated WebP": picture(Image.effect_noise((64, 64), 50), "webp", cut=900),
    "a bomb": as_image(png_claiming(60_000, 60_000)),
    "too many pixels": as_image(png_claiming(4097, 4096)),
    "no pixels": as_image(png_claiming(0, 5)),
    "a WebP that calls itself PNG": picture(GREEN, "webp") | {"format": "png"},
    "a PNG that calls itself WebP": picture(GREEN) | {"format": "webp"},
    "a GIF": picture(GREEN, "gif") | {"format": "png"},
    "a WebP bomb": as_image(b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + b"\xff" * 6 + b"\0" * 20, "webp"),
    "only a header": as_image(png_claiming(64, 64)[:33]),
}


@dataclass(frozen=True)
class Size(PerItem):
    name = "size"

    def judge(self, completion, row):
        return Score.ok(completion.width * completion.height)


@pytest.mark.parametrize("what", BAD)
def test_a_bad_image_fails_alone(what):
    http, good = client(Size()), {"image": picture(GREEN)}
    error = problem(http.post("/v1/score", json=request("size", {"image": BAD[what]})), 422)
    assert error["type"] == "bad_image" and error["message"].startswith("bad image: ")
    answer = http.post("/v1/score", json=request("size", good, {"image": BAD[what]}, good)).json()
    assert [item["status"] for item in answer["items"]] == ["ok", "infra_error", "ok"]
    assert [item["score"] for item in answer["items"]] == [1200, None, 1200]


def test_many_large_pictures_are_refused_by_their_headers():
    items = [{"image": as_image(png_claiming(4096, 4096))}] * 5
    assert problem(client(Size()).post("/v1/score", json=request("size", *items)), 413)["type"] == "too_large"


@pytest.mark.parametrize("form", ["png", "webp"])
@given(data=st.data())
@settings(max_examples=150)
def test_damaged_pictures_are_refused_and_nothing_else_happens(form, data):
    whole = base64.b64decode(picture(GREEN, form)["b64"])
    content = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        pixels = pixels_of(content, form)
        opened = picture_of(content, form)
    except ValueError:
        return
    assert opened.width * opened.height == pixels


@given(
    st.integers(1, 60),
    st.integers(1, 60),
    st.sampled_from(["png", "webp", "lossy", "alpha"]),
    st.integers(0, 2**24 - 1),
)
@settings(max_examples=40)
def test_the_size_in_the_header_is_the_size(width, height, kind, colour):
    buffer = io.BytesIO()
    image = Image.new("RGBA" if kind == "alpha" else "RGB", (width, height), colour)
    image.save(buffer, format="png" if kind == "png" else "webp", lossless=kind == "webp")
    assert pixels_of(buffer.getvalue(), "png" if kind == "png" else "webp") == width * height


# -- anything at all


@dataclass(frozen=True)
class Anything(PerItem):
    name = "anything"

    def judge(self, completion, row):
        return Score.ok(len(row), seen=str(completion)[:20])


FUZZED = RewardApp({"anything": Anything()}, "s3cret")
FUZZED.workers["anything"].started.result(20)
ALLOWED = schemathesis.Config.from_dict({"generation": {"mode": "positive"}})  # negations it sometimes cannot draw
DESCRIPTION = schemathesis.openapi.from_asgi("/openapi.json", FUZZED.app, config=ALLOWED)


@DESCRIPTION.parametrize()
@settings(max_examples=50, suppress_health_check=list(HealthCheck))
def test_answers_are_as_the_description_says(case):
    """Also: what the description allows is accepted."""
    answer = case.call(headers={"Authorization": "Bearer s3cret"})
    broken = answer.status_code == 422  # no schema can say which base64 is a picture
    case.validate_response(answer, excluded_checks=[positive_data_acceptance] if broken else [])


JSONS = st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists).map(json.dumps)


@given(st.binary(max_size=300) | JSONS)
@settings(max_examples=60)
def test_no_body_brings_it_down(body):
    http = TestClient(FUZZED.app, raise_server_exceptions=False)
    problem(http.post("/v1/score", content=body, headers=JSON | {"Authorization": "Bearer s3cret"}), 400)


PARTS = [(), ("items", 0), ("items", 1), ("items", 1, "image")]
WRONG = st.none() | st.integers() | st.just([]) | st.just({"x": 1}) | st.just([{}])


@given(st.sampled_from(PARTS), st.integers(0, 5), WRONG, st.sampled_from(["wrong", "lost", "added"]))
@settings(max_examples=100)
def test_one_wrong_part_is_enough_for_400(path, number, value, change):
    whole = request("anything", told("x"), {"image": picture(GREEN)})
    part: Any = whole
    for step in path:
        part = part[step]
    name = sorted(part)[number % len(part)]
    optional = ("meta", "prompt")
    if change == "added":
        part[f"{name}s"] = part[name]
    elif change == "lost":
        assume(name not in optional)
        del part[name]
    else:
        assume(not (name == "meta" and value == {"x": 1}) and not (name in ("items", "prompt") and value in ([], [{}])))
        part[name] = value
    http = TestClient(FUZZED.app, raise_server_exceptions=False)
    problem(http.post("/v1/score", json=whole, headers={"Authorization": "Bearer s3cret"}), 400)


# -- the program


def test_a_reward_that_cannot_start_ends_the_server(monkeypatch, capfd):
    @dataclass(frozen=True)
    class Unfit(SudokuSolved):
        def for_tokens(self, end, mask=()):
            raise UserError("no sandbox can start here")

    monkeypatch.setattr("unmask.serve.server.by_name", lambda name: Unfit())
    assert main(["serve", "--rewards", "sudoku", "--port", "0"]) == 2
    assert capfd.readouterr().err == "unmask: no sandbox can start here\n"


def test_a_reward_that_exits_does_not_take_the_server_with_it():
    @dataclass(frozen=True)
    class Exits(PerItem):
        name = "exits"

        def judge(self, completion, row):
            raise SystemExit(completion)

    http = client(Exits())
    for _ in range(2):
        error = problem(http.post("/v1/score", json=request("exits", {"completion": "bye"})), 500)
        assert "SystemExit: bye" in error["message"]


def test_a_server_needs_no_torch():
    code = "import sys, unmask.serve; print('torch' in sys.modules, 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"


def test_the_program_serves_what_it_prints_and_stops_when_told(tmp_path):
    file = tmp_path / "own.py"
    file.write_text("def own(completions, **columns):\n    return [float(len(c)) for c in completions]\n")
    program = Program("sudoku", f"{file}:own")
    try:
        assert [address.rpartition("/")[2] for address in program.addresses] == ["sudoku", "own"]
        url = program.addresses[0].rpartition("/")[0]
        answer = httpx.post(f"{url}/v1/score", json=request("own", {"completion": "four"}), trust_env=False)
        assert answer.json()["items"] == [{"score": 4.0, "status": "ok", "details": {}}]
    finally:
        assert program.interrupt() == 0
