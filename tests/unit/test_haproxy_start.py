from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from flts_ray.local.haproxy_start import (
    FRONTEND,
    admin_socket,
    combined,
    confined,
    listeners,
    remembered,
    running_pid,
    takeover,
    with_descriptors,
)
from flts_ray.serve.asgi import ALWAYS

RENDERED = """global
    log 127.0.0.1:514 local0 info
    stats socket /run/node/admin.sock mode 666 level admin expose-fd listeners
    maxconn 2048
defaults
    log global
frontend prometheus
    bind :9101
    mode http
frontend http_frontend
    bind {host}:8000
    acl is_demo path_beg /
    use_backend http-demo if is_demo
    default_backend default_backend
backend http-demo
    server one 127.0.0.1:30000 check
listen stats
  bind *:8404
  stats enable
  stats uri /stats
"""


def rendered(host: str = "127.0.0.1") -> str:
    return RENDERED.format(host=host)


def test_only_the_http_listener_may_be_on_every_interface() -> None:
    text = confined(rendered("*"), "/run/node", "127.0.0.1", None)
    assert listeners(text) == ["127.0.0.1:9101", "*:8000"]
    assert "bind unix@/run/node/stats.sock mode 600\n  stats enable" in text
    assert listeners(confined(rendered(), "/run/node", "10.0.0.7", None)) == [
        "10.0.0.7:9101",
        "127.0.0.1:8000",
    ]


@pytest.mark.parametrize("host", ["10.0.0.5", "[::1]", "localhost"])
def test_http_listens_on_the_host_that_is_given(host: str) -> None:
    text = confined(rendered("*"), "/run/node", "127.0.0.1", "/tls.pem", host)
    assert listeners(text) == ["127.0.0.1:9101", f"{host}:8000"]
    assert f"bind {host}:8000 ssl crt /tls.pem" in text
    assert "bind fd@51 ssl" in with_descriptors(text, listeners(text))


def test_requests_are_not_logged_one_by_one() -> None:
    text = confined(rendered(), "/run/node", "127.0.0.1", None)
    assert "log 127.0.0.1:514 local0 notice\n" in text
    assert "    log global\n" in text


def test_requests_are_read_whole_so_that_they_can_be_repeated() -> None:
    text = confined(rendered(), "/run/node", "127.0.0.1", "/tls.pem", "localhost")
    assert text.count("option http-buffer-request") == 1
    frontend = text[text.index("frontend http_frontend") : text.index("backend http-demo")]
    assert "\n    option http-buffer-request\n" in frontend


def test_replicas_need_not_watch_the_caller_nor_name_the_request() -> None:
    text = confined(rendered(), "/run/node", "127.0.0.1", None)
    frontend = text[text.index("frontend http_frontend") : text.index("backend http-demo")]
    assert "\n    http-request set-header x-request-disconnect-disabled ?1\n" in frontend
    named = "http-request set-header x-request-id %[uuid] unless { req.hdr(x-request-id) -m found }"
    assert f"\n    {named}\n" in frontend


def test_replicas_are_told_when_a_request_came() -> None:
    text = confined(rendered(), "/run/node", "127.0.0.1", None)
    frontend = text[text.index("frontend http_frontend") : text.index("backend http-demo")]
    assert "\n    http-request set-header x-flts-started-us %[date(0,us)]\n" in frontend


def test_every_answer_has_the_headers_that_replicas_leave_out() -> None:
    for name, value in ALWAYS:
        line = f"http-after-response set-header {name.decode()} "
        (found,) = [one for one in FRONTEND if one.startswith(line)]
        assert shlex.split(found)[3] == value.decode()


def test_tls_is_added_to_the_http_listener_alone() -> None:
    text = confined(rendered(), "/run/node", "127.0.0.1", "/run/node/tls.pem")
    (line,) = [line for line in text.splitlines() if "ssl" in line]
    assert line.strip().startswith("bind 127.0.0.1:8000 ssl crt /run/node/tls.pem ")
    assert listeners(text) == ["127.0.0.1:9101", "127.0.0.1:8000"]


def test_inherited_sockets_take_the_place_of_addresses() -> None:
    text = confined(rendered(), "/run/node", "127.0.0.1", "/tls.pem")
    changed = with_descriptors(text, listeners(text))
    assert "bind fd@50\n" in changed
    assert "bind fd@51 ssl crt /tls.pem" in changed
    assert listeners(changed) == []
    assert "server one 127.0.0.1:30000 check" in changed


def test_ipv6_addresses_are_listeners_too() -> None:
    text = confined(rendered("::1"), "/run/node", "127.0.0.1", None)
    assert listeners(text)[1] == "::1:8000"
    assert "bind fd@51\n" in with_descriptors(text, listeners(text))


def test_routes_are_remembered_for_a_takeover_of_the_same_listeners(tmp_path: Path) -> None:
    memory = tmp_path / "routes.cfg"
    whole = rendered()
    empty = whole.replace("    use_backend http-demo if is_demo\n", "")
    assert remembered(empty, memory, taking_over=True) == empty
    assert remembered(whole, memory, taking_over=False) == whole
    assert remembered(empty, memory, taking_over=False) == empty
    assert remembered(empty, memory, taking_over=True) == whole
    elsewhere = empty.replace(":8000", ":8001")
    assert remembered(elsewhere, memory, taking_over=True) == elsewhere


def test_nobody_is_taken_over_where_nobody_answers(tmp_path: Path) -> None:
    path = str(tmp_path / "admin.sock")
    assert running_pid(path) is None
    assert takeover(path, ["-f", "x"]) == []
    assert admin_socket(rendered()) == "/run/node/admin.sock"
    with pytest.raises(SystemExit, match="stats socket"):
        admin_socket("global\n")


def test_certificate_and_key_are_one_file_that_nobody_else_reads(tmp_path: Path) -> None:
    cert, key = tmp_path / "c", tmp_path / "k"
    cert.write_text("CERT\n\n")
    key.write_text("KEY\n")
    path = Path(combined(str(cert), str(key), tmp_path))
    assert path.read_text() == "CERT\nKEY\n"
    assert path.stat().st_mode & 0o777 == 0o600
