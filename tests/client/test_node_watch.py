import pytest

from client.node_watch import SILENCE_S, NodeWatch

ADDRESS = "coordinator.example:443"


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def watch(last_contact: float | None = None, *, tunneled: bool = False) -> tuple[NodeWatch, list[str], Clock]:
    told: list[str] = []
    clock = Clock()
    return NodeWatch(ADDRESS, told.append, last_contact, tunneled, clock), told, clock


def connected() -> tuple[NodeWatch, list[str], Clock]:
    made = watch()
    made[0].judge_supernode("INFO :      Starting Flower SuperNode")
    made[0].judge_supernode("fleet ActivateNode 200 clock +0")
    return made


def test_a_connection_is_told_once() -> None:
    one, told, _ = connected()
    assert one.judge_supernode("fleet SendNodeHeartbeat 200 clock +1") is None
    assert told == [f"connected to the coordinator at {ADDRESS}"]
    assert one.facts.session and one.facts.last_contact == 1000.0


@pytest.mark.parametrize(
    "line",
    [
        "WARNING :   Giving up reconnection after 12.00 seconds and 3 tries.",
        "ERROR :     SSL/TLS handshake error detected.",
        "ERROR :     Failed to send message 0a1b: Client error '404 Not Found' for url 'https://x/v1/fleet/push'",
        "Exception in thread Thread-3 (_run):",
        "flwr.supercore.run.RunNotRunningException",
        "RuntimeError: Heartbeat failed unexpectedly. The SuperLink does not recognize this SuperNode.",
        "ERROR :     Client error '404 Not Found' for url 'https://x/v1/fleet/pull-messages'",
        "ERROR :     Server error '500 Internal Server Error' for url 'https://x/v1/fleet/pull-messages'",
    ],
)
def test_a_supernode_that_gave_up_is_restarted(line: str) -> None:
    one, _, _ = connected()
    assert one.judge_supernode(line)


@pytest.mark.parametrize(
    "line",
    [
        "WARNING :   Connection attempt failed, retrying in 3.41 seconds",
        "INFO :      Connection successful after 41.00 seconds and 5 tries.",
        "INFO :      Run ID 7 is not in `RUNNING` status. Ignoring reply message 0a.",
        "fleet SendNodeHeartbeat failed ConnectError: [Errno 111] Connection refused",
        "fleet PullMessages 503 clock +0",
        "fleet PushMessages 403 clock +0 code 2007",
        "INFO:     Uvicorn running on https://127.0.0.1:5000 (Press CTRL+C to quit)",
    ],
)
def test_what_flower_repairs_itself_is_left_to_it(line: str) -> None:
    one, _, _ = connected()
    assert one.judge_supernode(line) is None


def test_refused_pulls_are_borne_twice_in_a_row_and_a_heartbeat_forgives_them() -> None:
    one, _, _ = connected()
    refused = "fleet PullMessages 403 clock +0"
    assert [one.judge_supernode(refused) for _ in range(2)] == [None, None]
    one.judge_supernode("fleet SendNodeHeartbeat 200 clock +0")
    assert [one.judge_supernode(refused) for _ in range(2)] == [None, None]
    assert "403" in (one.judge_supernode(refused) or "")


def test_a_silent_heartbeat_is_noticed_and_a_failing_one_is_not_silent() -> None:
    one, _, clock = connected()
    clock.now += SILENCE_S + 1
    assert "silent for 91 s" in (one.judge_supernode("") or "")
    for method in ("SendNodeHeartbeat", "PullMessages"):
        one.judge_supernode(f"fleet {method} failed ConnectTimeout: timed out")
    assert one.judge_supernode("") is None


def test_a_supernode_that_keeps_trying_to_connect_is_left_alone_and_one_that_has_stopped_is_not() -> None:
    one, _, clock = watch()
    one.judge_supernode("INFO :      Starting Flower SuperNode")
    for _ in range(10):
        clock.now += SILENCE_S / 2
        one.judge_supernode("fleet ActivateNode failed ConnectError: [Errno 111] Connection refused")
        assert one.judge_supernode("") is None
    clock.now += SILENCE_S + 1
    assert "silent" in (one.judge_supernode("") or "")


def test_a_supernode_that_no_longer_asks_is_restarted_unless_it_works_on_a_message() -> None:
    one, _, clock = connected()
    one.judge_supernode("INFO :      Receiving: train message (ID: 0a)")
    for _ in range(10):
        clock.now += 20
        one.judge_supernode("fleet SendNodeHeartbeat 200 clock +0")
        assert one.judge_supernode("") is None
    one.judge_supernode("INFO :      Sent successfully")
    clock.now += 60
    one.judge_supernode("fleet SendNodeHeartbeat 200 clock +0")
    one.judge_supernode("fleet PullMessages 200 clock +0")
    clock.now += SILENCE_S + 1
    one.judge_supernode("fleet SendNodeHeartbeat 200 clock +0")
    assert one.judge_supernode("") == "it has not asked for messages for 91 s"


def test_a_refused_activation_is_a_reason_to_restart_and_an_unavailable_coordinator_is_not() -> None:
    one, _, _ = watch()
    assert "do not belong together" in (one.judge_supernode("fleet ActivateNode 403") or "")
    assert one.judge_supernode("fleet ActivateNode 503 clock +0") is None


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("fleet ActivateNode 412 clock +0 code 2004", "does not know this node's key"),
        ("fleet ActivateNode 412 clock +0 code 1001", "another version of Flower"),
        ("fleet ActivateNode 401 clock +40", "clock is 40 s ahead of"),
        ("fleet ActivateNode 401 clock -500", "clock is 500 s behind"),
        ("fleet ActivateNode 401 clock +0", "does not accept this node's signature"),
        ("fleet SendNodeHeartbeat 401 clock +0", "registration was removed"),
        ("fleet ActivateNode 403", "certificate and its node key do not belong together"),
        ("fleet ActivateNode 400", "does not accept this site's certificate"),
        ("fleet ActivateNode 404", "no coordinator"),
        ("fleet ActivateNode 418", "status 418"),
        ("fleet PullMessages 429 clock +0", "answered with status 429"),
        ("fleet PushObject 413 clock +0", "client_max_body_size"),
        ("fleet ActivateNode failed ConnectError: [Errno 111] Connection refused", "cannot be reached"),
        ("fleet ActivateNode failed ConnectTimeout: ", "cannot be reached (ConnectTimeout)"),
        ("fleet ActivateNode failed ConnectError: [Errno -2] Name or service not known", "DNS"),
        (
            "fleet ActivateNode failed ConnectError: [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: "
            "unable to get local issuer certificate (_ssl.c:1006)",
            "does not have a certificate of the authority",
        ),
        (
            "fleet ActivateNode failed ConnectError: [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: "
            "IP address mismatch, certificate is not valid for '10.0.0.1'. (_ssl.c:1006)",
            "for another name",
        ),
        (
            "fleet ActivateNode failed ConnectError: [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: "
            "certificate has expired (_ssl.c:1006)",
            "has expired",
        ),
        ("fleet SendNodeHeartbeat 200 clock +4", "clock is 4 s ahead of"),
    ],
)
def test_trouble_is_told_in_words_and_once(line: str, words: str) -> None:
    one, told, _ = watch()
    one.judge_supernode(line)
    one.judge_supernode(line)
    about = [sentence for sentence in told if not sentence.startswith("connected")]
    assert len(about) == 1 and words in about[0]
    assert one.facts.trouble == about[0]


def test_a_refusal_just_after_a_contact_is_that_of_the_old_session() -> None:
    one, _, clock = connected()
    clock.now += 50
    one.judge_supernode("INFO :      Starting Flower SuperNode")
    one.judge_supernode("fleet ActivateNode 412 clock +0 code 2004")
    reason = one.judge_supernode("Failed to initialize the connection to the SuperLink.")
    assert reason is not None and reason.startswith("the coordinator still holds the old session")
    clock.now += 100
    one.judge_supernode("fleet ActivateNode 412 clock +0 code 2004")
    assert "does not know this node's key" in one.facts.trouble


def test_after_an_orderly_end_there_is_no_old_session() -> None:
    one, _, _ = connected()
    one.judge_supernode("fleet DeactivateNode 200 clock +0")
    one.judge_supernode("fleet ActivateNode 412 clock +0 code 2004")
    assert "does not know this node's key" in one.facts.trouble


def test_a_contact_ends_the_trouble() -> None:
    one, told, _ = connected()
    one.judge_supernode("fleet SendNodeHeartbeat 503 clock +0")
    assert one.facts.trouble
    one.judge_supernode("fleet SendNodeHeartbeat 200 clock +0")
    assert one.facts.trouble == ""
    one.judge_supernode("fleet SendNodeHeartbeat 200 clock +4")
    one.judge_supernode("fleet SendNodeHeartbeat 200 clock +5")
    one.judge_supernode("fleet SendNodeHeartbeat 200 clock +1")
    assert [sentence.split(";")[0] for sentence in told[1:]] == [
        "the coordinator is not available at the moment",
        "the coordinator answers, and nothing is wrong any more",
        "this machine's clock is 4 s ahead of the coordinator's",
        "the coordinator answers, and nothing is wrong any more",
    ]


def test_messages_are_followed() -> None:
    one, _, clock = connected()
    for line in ("[RUN 17, ROUND 3]", "Receiving: train message (ID: 0a)"):
        one.judge_supernode(f"INFO :      {line}")
    clock.now += 60
    one.judge_supernode("INFO :      Sent successfully")
    facts = one.facts
    assert (facts.run, facts.round, facts.message, facts.received, facts.answered) == ("17", "3", "train", 1000, 1060)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            "LOG3[1]: SSL_connect: ssl/statem/statem_clnt.c:1889: error:0A000086: certificate verify failed",
            "authority",
        ),
        ("LOG4[1]: CERT: No matching IP address found", "for another name"),
        ("LOG3[2]: s_connect: connect 127.0.0.1:9: Connection refused (111)", "cannot be reached"),
        ("LOG3[0]: Error resolving 'nowhere.example': Neither nodename nor servname known", "DNS"),
        ("LOG3[4]: SSL_read: error:0A00045C:SSL routines::tlsv13 alert certificate required", "site's certificate"),
    ],
)
def test_the_tunnel_says_why_the_coordinator_is_not_reached(line: str, words: str) -> None:
    one, told, _ = watch()
    assert one.judge_tunnel(line) is None
    assert len(told) == 1 and words in told[0]


def test_the_tunnel_knows_better_than_the_supernode_behind_it() -> None:
    one, told, _ = watch(tunneled=True)
    for _ in range(3):
        one.judge_supernode("fleet ActivateNode failed RemoteProtocolError: Server disconnected")
        one.judge_tunnel("LOG4[67]: CERT: Pre-verification error: unable to get local issuer certificate")
        one.judge_tunnel("LOG3[67]: SSL_connect: error:0A000086:SSL routines::certificate verify failed")
    assert len(told) == 2 and "tunnel did not carry" in told[0] and "certificate of the authority" in told[1]


def test_another_kind_of_program_is_named() -> None:
    one, told, _ = watch()
    reason = one.judge_superexec("FileNotFoundError: [Errno 2] No such file or directory: 'flwr-agentapp'")
    assert reason is not None and "flwr-agentapp" in reason
    one.judge_superexec("refused a bundle that is not on this site's list: 00. Nothing of it was unpacked.")
    assert told == ["refused a bundle that is not on this site's list: 00. Nothing of it was unpacked."]
