"""Answers over HTTP are those of the database; nobody reads what they may not."""

import asyncio
import csv
import io
import json
import math
import shutil
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import httpx
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import schemathesis
from fastapi import HTTPException
from hypothesis import HealthCheck, given, settings
from schemathesis import checks

from clsight import database, pipeline
from clsight.serve import asking, questions, replies
from clsight.serve.asking import Opened
from conftest import demo_models
from serving import bytes_of, detail, serving

CHECKS = [checks.not_a_server_error, checks.status_code_conformance,
          checks.content_type_conformance, checks.response_schema_conformance]
FORMATS = ("json", "csv", "arrow", "parquet")
NAMES = [(kind, name) for kind, folder in questions.KINDS.items()
         for name in database.sql_files(folder)]
NEEDED = {"examples": {"form": "the"}, "word_in_slices": {"form": "the"}}
HOSTILE = ["</script><script>alert(1)</script>", "=cmd|'/c calc'!A1", "a\x1b[2J\u202eb\0c\u2028d",
           '"; DROP TABLE documents; --', "{{7*7}} ${7*7} <img src=x onerror=alert(1)>"]


@pytest.fixture(scope="module")
def client(small_run):
    before = bytes_of(small_run.folder)
    with serving(small_run.folder) as client:
        yield client
    assert bytes_of(small_run.folder) == before


def whole(client, address, **parameters):
    """The bodies of all pages."""
    bodies, answer = [], client.get(address, params=parameters)
    while True:
        assert answer.status_code == 200, answer.text
        bodies.append(answer.content)
        following = answer.links.get("next")
        assert (following is None) == (answer.headers["x-more"] == "false")
        if following is None:
            return bodies
        answer = client.get(following["url"])


def rows_of(body, form):
    if form == "json":
        return json.loads(body)
    if form == "arrow":
        return pa.ipc.open_stream(body).read_all().to_pylist()
    if form == "parquet":
        return pq.read_table(io.BytesIO(body)).to_pylist()
    return list(csv.DictReader(io.StringIO(body.decode())))


def typed(cell, value):
    """A cell of a CSV file as the value's type."""
    if cell == "" and value in (None, ""):
        return value
    if isinstance(value, list | dict):
        return json.loads(cell)
    if isinstance(value, bool):
        return cell.lower() == "true"
    return type(value)(cell)


def in_order(rows):
    return sorted(rows, key=lambda row: json.dumps(row, default=str))


@pytest.mark.parametrize(("kind", "name"), NAMES)
def test_every_question_in_every_format_is_what_the_database_says(client, small_run, kind, name):
    given = NEEDED.get(name, {})
    with database.connect(small_run.folder) as connection:
        expected = database.query(connection, name, given).read_all().to_pylist()
    for form in FORMATS:
        most = {} if "limit" in database.parameters(_file(kind, name)) else {"limit": 10_000}
        bodies = whole(client, f"/api/{kind}/{name}", format=form, **given, **most)
        got = [row for body in bodies for row in rows_of(body, form)]
        assert len(got) == len(expected)
        own_order = questions.is_ordered(_file(kind, name))
        pairs = (got, expected) if own_order else (in_order(got), in_order(expected))
        if form == "csv" and not own_order:
            with database.connect(small_run.folder) as connection:
                sql = f"FROM ({_body(kind, name)}) ORDER BY ALL"
                pairs = (got, database.query(connection, sql, {}).read_all().to_pylist())
        for row, wanted in zip(*pairs, strict=True):
            if form == "csv":
                row = {key: typed(cell, wanted[key]) for key, cell in row.items()}
            assert alike(row, wanted), {k: (row[k], wanted[k]) for k in row if row[k] != wanted[k]}


def alike(one, other):
    """Equal, but for the last digits: of sums, by DuckDB's threads, and of float32 in CSV.

    JSON has no infinity: it is a text there.
    """
    if isinstance(other, float):
        return math.isclose(float(one), other, rel_tol=1e-7)
    if isinstance(other, dict):
        return one.keys() == other.keys() and all(alike(one[key], other[key]) for key in other)
    if isinstance(other, list):
        return len(one) == len(other) and all(map(alike, one, other))
    return one == other


def _file(kind, name):
    return database.sql_files(questions.KINDS[kind])[name]


def _body(kind, name):
    return f"FROM {name}" if kind == "relations" else _file(kind, name).strip().rstrip(";") + "\n"


@pytest.mark.parametrize(("address", "limit"), [
    ("/api/relations/predictions", 173), ("/api/relations/words", 9_999),
    ("/api/relations/compare_scores", 1), ("/api/queries/findings_by_score", 3),
])
def test_pages_hold_every_row_once(client, small_run, address, limit):
    pages = [json.loads(body) for body in whole(client, address, limit=limit)]
    assert [len(page) for page in pages[:-1]] == [limit] * (len(pages) - 1)
    rows = [row for page in pages for row in page]
    expected = small_run.sql(address.rpartition("/")[2]).to_dicts()
    assert len(pages) == -(-len(expected) // limit)
    assert all(map(alike, in_order(rows), in_order(expected)))


def test_a_page_beyond_the_end_is_empty(client):
    answer = client.get("/api/relations/documents?offset=600")
    assert (answer.json(), answer.headers["x-rows"]) == ([], "0")
    assert "link" not in answer.headers


@pytest.mark.parametrize(("address", "sql"), [
    ("words?model=bert&document_id=17", "FROM words WHERE model = 'bert' AND document_id = 17"),
    ("predictions?correct=false&model=roberta&label=1",
     "FROM predictions WHERE NOT correct AND model = 'roberta' AND label = 1"),
    ("word_statistics?form=the&score=uniform",
     "FROM word_statistics WHERE form = 'the' AND score = 'uniform'"),
    ("documents?row=3", 'FROM documents WHERE "row" = 3'),
    ("word_statistics?form=the' OR 1=1 --", "FROM word_statistics WHERE false"),
])
def test_filters(client, small_run, address, sql):
    expected = small_run.sql(sql)
    assert in_order(client.get(f"/api/relations/{address}").json()) == in_order(expected.to_dicts())


def test_parameters_reach_the_query(client, small_run):
    for asked in ({"form": "the", "least": True, "limit": 3, "model": "bert"},
                  {"form": "of the", "least": False, "limit": 2, "model": "(all)"}):
        expected = small_run.sql("examples", **{k: str(v).lower() for k, v in asked.items()})
        assert client.get("/api/queries/examples", params=asked).json() == expected.to_dicts()
    under = {"direction": "under", "q": 1.0, "min_documents": 30, "score": "uniform"}
    assert client.get("/api/queries/top_words", params=under).json() == small_run.sql(
        "top_words", **under).to_dicts()


@pytest.mark.parametrize(("address", "status", "sentence"), [
    ("queries/examples", 422, "form: field required"),
    ("queries/examples?form=the&model=nobody", 422, "'(all)', 'bert' or 'roberta'"),
    ("queries/top_words?score=norm", 422, "'uniform', 'classifier', 'projected' or 'contribution'"),
    ("queries/top_words?direction=sideways", 422, "'over' or 'under'"),
    ("queries/top_words?q=much", 422, "valid number"),
    ("queries/top_words?q=nan", 422, "finite number"),
    ("queries/errors?limit=-1", 422, "greater than or equal to 0"),
    ("queries/errors?modle=bert", 422, "there is no parameter modle"),
    ("queries/examples?form=the&least=perhaps", 422, "boolean"),
    ("relations/words?limit=0", 422, "limit"),
    ("relations/words?limit=10001", 422, "at most 10,000 rows as json"),
    ("relations/words?limit=100001&format=arrow", 422, "less than or equal to 100000"),
    ("relations/words?offset=-1", 422, "offset"),
    ("relations/words?format=xml", 422, "'json', 'csv', 'arrow' or 'parquet'"),
    ("relations/words?document_id=one", 422, "document_id"),
    ("relations/words?document_id=99999999999999999999", 422, "document_id"),
    ("relations/nowhere", 404, "there are bad_documents"),
    ("queries/nothing", 404, "compare_models"),
    ("browse?outcome=some", 422, "'errors'"),
    ("elsewhere", 404, "/openapi.json"),
])
def test_wrong_requests_get_a_sentence(client, address, status, sentence):
    answer = client.get(f"/api/{address}")
    assert answer.status_code == status
    assert sentence in detail(answer)


def test_no_way_to_write(client):
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        assert client.request(method, "/api/relations/words").status_code == 405
    answer = client.post("/api/sql", json={"sql": "SELECT 1"})
    assert answer.status_code == 403
    assert "--allow-sql" in detail(answer)
    large = client.post("/api/sql", content=b" " * 2_000_000)
    assert (large.status_code, "1,048,576 bytes" in detail(large)) == (413, True)


@pytest.mark.parametrize(("accept", "expected"), [
    ("*/*", "application/json"), ("text/csv", "text/csv"),
    ("application/json;q=0.5, text/*", "text/csv"),
    ("text/html,application/xhtml+xml,*/*;q=0.8", "application/json"),
    ("application/vnd.apache.parquet, */*;q=0.1", "application/vnd.apache.parquet"),
    ("application/vnd.apache.arrow.stream", "application/vnd.apache.arrow.stream"),
    ("application/json;q=0, */*", "text/csv"),
])
def test_accept_chooses_the_format(client, accept, expected):
    answer = client.get("/api/relations/model_summary", headers={"Accept": accept})
    assert answer.headers["content-type"].partition(";")[0] == expected
    named = client.get("/api/relations/model_summary?format=arrow", headers={"Accept": accept})
    assert named.headers["content-type"] == "application/vnd.apache.arrow.stream"


def test_nothing_acceptable(client):
    answer = client.get("/api/relations/model_summary", headers={"Accept": "image/png"})
    assert (answer.status_code, "?format=" in detail(answer)) == (406, True)


def test_downloads_have_names(client):
    for form in ("csv", "arrow", "parquet"):
        headers = client.get(f"/api/relations/words?limit=1&format={form}").headers
        assert headers["content-disposition"] == f'attachment; filename="words.{form}"'
    assert "content-disposition" not in client.get("/api/relations/words?limit=1").headers


def test_etags(client):
    address = "/api/relations/predictions?model=bert&limit=50"
    first = client.get(address)
    etag = first.headers["etag"]
    assert etag.startswith('"')
    for known in (etag, f"W/{etag}", f'"x", {etag}', "*"):
        again = client.get(address, headers={"If-None-Match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    # Defaults are part of the request, whether they are written or not.
    assert client.get(f"{address}&offset=0").headers["etag"] == etag
    others = [f"{address}&offset=1", f"{address}&format=csv", address.replace("bert", "roberta"),
              address.replace("predictions", "words")]
    tags = {client.get(other).headers["etag"] for other in others}
    assert len(tags | {etag}) == 5
    assert client.get(address, headers={"If-None-Match": '"other"'}).content == first.content
    plain = client.get(address, headers={"Accept-Encoding": "identity"})
    assert (first.headers["content-encoding"], "content-encoding" in plain.headers) == (
        "gzip", False)
    assert plain.content == first.content
    assert plain.headers["etag"] != etag
    assert first.headers["cache-control"] == "private, no-cache"


def test_the_same_request_has_the_same_bytes(small_run):
    """As a strong ETag promises, also after a restart."""
    async def bodies():
        opened = Opened(small_run.folder)
        with opened.connection.cursor() as cursor:
            for question in questions.questions(cursor, opened.plan):
                given = question.parameters(**NEEDED.get(question.name, {}))
                values, (limit, offset) = question.values(given), question.page(given, "json")
                yield question.answer(cursor, values, limit, offset, "json").content
        await opened.close()

    async def all_bodies():
        return [body async for body in bodies()]

    assert asyncio.run(all_bodies()) == asyncio.run(all_bodies())


def test_head_is_get_without_a_body(client):
    for address in ("/api/relations/words", "/api/status", "/api/queries/summary?format=csv"):
        head, got = client.head(address), client.get(address)
        assert (head.status_code, head.content) == (200, b"")
        left_out = {"date"} if "status" not in address else {"date", "content-length"}
        assert {k: v for k, v in head.headers.items() if k not in left_out} == {
            k: v for k, v in got.headers.items() if k not in left_out}


def test_the_catalogue_and_the_description_list_everything(client, small_run):
    described = client.get("/openapi.json").json()
    for kind in questions.KINDS:
        listed = {row["name"]: row for row in client.get(f"/api/{kind}").json()}
        assert set(listed) == {name for of, name in NAMES if of == kind}
        for name, row in listed.items():
            operation = described["paths"][row["url"]]["get"]
            assert operation["summary"] == row["purpose"] == database.purpose(_file(kind, name))
            assert [p["name"] for p in operation["parameters"]] == row["parameters"]
    columns = [column["name"] for column in
               client.get("/api/relations").json()[0]["columns"]]
    assert columns == small_run.sql(client.get("/api/relations").json()[0]["name"]).columns
    parameters = {p["name"]: p["schema"] for p in
                  described["paths"]["/api/queries/examples"]["get"]["parameters"]}
    assert parameters["model"]["enum"] == ["(all)", "bert", "roberta"]
    assert parameters["limit"]["type"] == "integer"
    assert parameters["least"]["type"] == "boolean"
    assert "cdn" not in json.dumps(described)


def test_status_and_health(client):
    assert client.get("/api/status").json()["state"] == "complete"
    assert client.get("/healthz").json() == {"status": "ok"}


def test_browse_finds_documents(client, small_run):
    found = client.get("/api/browse?model=bert&outcome=errors&limit=5").json()
    errors = small_run.sql("SELECT * FROM predictions WHERE NOT correct AND model = 'bert'")
    assert found["total"] == len(errors)
    assert len(found["documents"]) == min(5, len(errors))


def test_the_page_is_the_live_report(client):
    from clsight.report import page

    answer = client.get("/")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "api/browse" in answer.text
    assert callable(page)


def test_every_answer_tells_browsers_what_they_may(client):
    for address in ("/", "/api/relations/words", "/api/nowhere", "/api/queries/examples"):
        headers = client.get(address).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "http" not in policy
        assert "access-control-allow-origin" not in headers
    for address in ("/docs", "/redoc"):
        assert client.get(address).status_code == 404


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example",
                                  "localhost.evil.example", "[::2]", "0.0.0.0", "a@b:c", ""])
def test_other_names_for_this_machine_are_refused(client, host):
    answer = client.get("/api/relations/model_summary", headers={"Host": host})
    assert answer.status_code in (400, 403)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:8000", "[::1]:8000"])
def test_own_names_are_answered(client, host):
    assert client.get("/healthz", headers={"Host": host}).status_code == 200


def test_64_clients_at_once(client):
    addresses = [f"/api/relations/words?document_id={i}" for i in range(40)]
    addresses += ["/api/relations/model_summary", "/api/queries/summary", "/api/status"] * 8

    async def all_at_once():
        async with httpx.AsyncClient(base_url=client.base_url, timeout=60) as asked:
            return await asyncio.gather(*(asked.get(address) for address in addresses))

    answers = asyncio.run(all_at_once())
    assert {answer.status_code for answer in answers} == {200}
    for i, answer in enumerate(answers[:40]):
        assert {row["document_id"] for row in answer.json()} == {i}


def test_hostile_texts_are_text(tmp_path):
    texts = [f"{HOSTILE[i % len(HOSTILE)]} {i}" for i in range(60)]
    pl.DataFrame({"text": texts, "label": [0, 1] * 30, "id": [f"<b>{i}\n" for i in range(60)]}
                 ).write_parquet(tmp_path / "hostile.parquet")
    pipeline.run(str(tmp_path / "hostile.parquet"), text="text", label="label", id="id",
                 models={"bert": demo_models()["bert"]}, output=tmp_path / "run")
    with serving(tmp_path / "run") as client:
        answer = client.get("/api/relations/documents")
        assert answer.headers["content-type"] == "application/json"
        assert [row["text"] for row in in_order_of(answer.json())] == texts
        cells = list(csv.DictReader(io.StringIO(
            client.get("/api/relations/documents?format=csv").text, newline="")))
        assert sorted(row["text"] for row in cells) == sorted(texts)
        wrong = client.get("/api/relations/<script>alert(1)</script>")
        assert (wrong.status_code, wrong.headers["content-type"]) == (404, "application/json")
        page = client.get("/").text
        assert not any(text in page for text in texts if "<script>alert(1)" in text)


def in_order_of(rows):
    return sorted(rows, key=lambda row: row["row"])


def test_a_token_is_needed_where_others_can_ask(small_run):
    with serving(small_run.folder, "--host", "0.0.0.0") as client:
        token = httpx.URL(client.address).params["token"]
        assert len(token) >= 40
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {token}"},
                        {"Authorization": f"Bearer {token}x"}, {"Cookie": "clsight=1"}):
            for address in ("/", "/?token=x", "/api/status", "/api/relations/words",
                            f"/api/relations/words?token={token}", "/openapi.json"):
                refused = client.get(address, headers=headers)
                assert refused.status_code == 401
                assert "Bearer" in detail(refused)
        assert client.get("/healthz").status_code == 200
        own = {"Authorization": f"Bearer {token}"}
        assert client.get("/api/relations/words?limit=1", headers=own).status_code == 200
        assert "HTTPBearer" in client.get("/openapi.json", headers=own).text


def test_a_browser_keeps_the_token_as_a_cookie(small_run):
    token = "only-for-friends-17"
    with serving(small_run.folder, "--host", "0.0.0.0", "--token", token) as client:
        first = client.get(f"/?token={token}&tab=words")
        assert (first.status_code, first.headers["location"]) == (303, "/?tab=words")
        said = first.headers["set-cookie"].lower()
        assert "httponly" in said
        assert "samesite=strict" in said
        assert client.get("/api/relations/words?limit=1").status_code == 200  # by its cookie


def test_a_local_server_asks_for_a_token_that_was_given(small_run, monkeypatch):
    monkeypatch.setenv("CLSIGHT_TOKEN", "from-the-environment")
    with serving(small_run.folder) as client:
        assert client.get("/api/status").status_code == 401
        own = {"Authorization": "Bearer from-the-environment"}
        assert client.get("/api/status", headers=own).status_code == 200
        assert client.get("/api/status", headers={**own, "Host": "x.example"}).status_code == 403


def test_an_incomplete_run_says_so_until_it_is_complete(small_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(small_run.folder, run)
    (run / "clsight.duckdb").rename(tmp_path / "aside")
    with serving(run) as client:
        for address in ("/api/relations/words", "/api/queries", "/api/browse", "/api/nowhere"):
            answer = client.get(address)
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "10")
            assert "let clsight run finish" in detail(answer)
        page = client.get("/")
        assert (page.status_code, 'http-equiv="refresh"' in page.text) == (503, True)
        assert client.get("/api/status").json()["state"] == "stopped"
        (tmp_path / "aside").rename(run / "clsight.duckdb")
        assert client.get("/api/relations/documents?limit=1").status_code == 200


def test_a_run_that_is_changed_is_opened_anew(small_run, reviews, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(small_run.folder, run)
    with serving(run) as client:
        address = "/api/relations/word_statistics?score=projected"
        before = client.get(address)
        assert before.status_code == 200
        pipeline.run(str(reviews), text="text", label="label", models=demo_models(), output=run,
                     dtype="float32", layers="all", shard_size=256, scores="contribution",
                     options=pipeline.Options(min_documents=20))
        assert "'uniform' or 'contribution'" in detail(client.get(address))
        after = client.get("/api/relations/word_statistics")
        assert {row["score"] for row in after.json()} == {"uniform", "contribution"}


def test_a_question_that_takes_too_long_is_ended(small_run, monkeypatch):
    monkeypatch.setattr(asking, "SECONDS", 0.5)

    async def ask(sql):
        opened = Opened(small_run.folder)
        with pytest.raises(HTTPException) as refused:
            await opened.ask(lambda cursor: database.query(cursor, sql, {}).read_all())
        assert await opened.ask(lambda cursor: cursor.sql("SELECT 1").fetchall()) == [(1,)]
        await opened.close()
        return refused.value

    for sql in ("SELECT sum(a.range * b.range) FROM range(10000000) a, range(10000000) b",
                "WITH RECURSIVE t AS (SELECT 1 AS a UNION ALL SELECT 1 FROM t) "
                "SELECT count(*) FROM t"):
        refused = asyncio.run(ask(sql))
        assert (refused.status_code, "longer than 0.5 seconds" in refused.detail) == (504, True)


def test_a_question_gets_no_more_than_the_memory(small_run, monkeypatch):
    monkeypatch.setitem(asking.LIMITS, "memory_limit", "100MB")
    before = bytes_of(small_run.folder)

    async def ask():
        opened = Opened(small_run.folder)
        sql = "SELECT count(*) FROM (SELECT DISTINCT range, range::VARCHAR FROM range(20000000))"
        with pytest.raises(HTTPException) as refused:
            await opened.ask(lambda cursor: database.query(cursor, sql, {}).read_all())
        await opened.close()
        return refused.value

    refused = asyncio.run(ask())
    assert (refused.status_code, "100MB" in refused.detail) == (503, True)
    assert bytes_of(small_run.folder) == before


def test_answers_that_are_kept_stay_within_their_bytes():
    kept = asking.Kept(1600)
    for i in range(100):
        kept.put(str(i), asking.Answer(bytes(100), ""))
    assert [i for i in range(100) if kept.get(str(i))] == [*range(84, 100)]
    kept.put("large", asking.Answer(bytes(101), ""))
    assert kept.get("large") is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it(small_run, number):
    with serving(small_run.folder) as client, ThreadPoolExecutor() as threads:
        asked = threads.submit(client.get, "/api/relations/word_mass?limit=10000")
        while not asked.running():
            pass
        client.get("/healthz")
        client.process.send_signal(number)
        assert client.process.wait(10) == 0
        assert client.process.stderr.read() == ""
        assert asked.result().status_code == 200


def ended(*arguments):
    return subprocess.run([sys.executable, "-m", "clsight.cli", "serve", *map(str, arguments)],
                          capture_output=True, text=True, check=False, timeout=60)


def test_what_cannot_be_served_is_a_sentence(small_run, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        answer = ended(small_run.folder, "--port", port)
        assert (answer.returncode, answer.stderr.count("\n")) == (1, 1)
        assert f"cannot listen on 127.0.0.1, port {port}" in answer.stderr
    for arguments, code, sentence in [
        ([tmp_path], 2, "not a clsight run"), ([small_run.folder, "--host", "no.invalid"], 1,
                                               "cannot listen on no.invalid"),
        ([small_run.folder, "--token", "short"], 2, "16 characters"),
        ([small_run.folder, "--token", "with spaces in it and more"], 2, "letters, digits"),
    ]:
        answer = ended(*arguments)
        assert (answer.returncode, sentence in answer.stderr) == (code, True), answer.stderr
        assert "Traceback" not in answer.stderr


def test_without_the_extra_it_says_what_to_install(small_run):
    code = ("import sys; sys.modules['uvicorn'] = None; from clsight.cli import main;"
            "sys.argv = ['clsight', 'serve', sys.argv[1]]; main()")
    answer = subprocess.run([sys.executable, "-c", code, str(small_run.folder)], check=False,
                            capture_output=True, text=True)
    assert answer.returncode == 2
    assert 'pip install "clsight[serve]"' in answer.stderr


def test_whatever_is_asked_has_an_answer(client):
    """Requests made up from the server's own description, right and wrong ones."""
    description = schemathesis.openapi.from_url(f"{client.base_url}/openapi.json")
    operations = [found.ok() for found in description.get_all_operations()]
    assert len(operations) > len(NAMES)
    for operation in operations:
        @settings(max_examples=4, deadline=None, database=None, suppress_health_check=HealthCheck)
        @given(case=operation.as_strategy())
        def ask(case):
            answer = case.call_and_validate(checks=CHECKS)
            if answer.status_code >= 400:
                assert isinstance(answer.json()["detail"], str)

        ask()


def test_likings():
    assert replies._liking("text/csv", replies._likings("text/*;q=0.3, */*;q=0.8")) == 0.3
