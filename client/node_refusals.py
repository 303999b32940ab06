"""Why a coordinator is not reached or refuses a node, and what an engineer can do about it, in words."""

from __future__ import annotations

CLOCK_AHEAD_S, CLOCK_BEHIND_S = 5, 303  # the coordinator allows 5 and 305; its Date header may be late by two
ACTIVATION_FAILED = 2004  # of flwr 1.41
OLD_SESSION = "the coordinator still holds the old session, for up to a minute after a node was killed or cut off"
UNKNOWN_KEY = (
    "the coordinator does not know this node's key, or the same key is in use elsewhere. Send it enrollment.json "
    "again, ask whether the site is admitted, and stop other copies of this node"
)
UNAVAILABLE = "the coordinator is not available at the moment; the node keeps trying"
TUNNEL_CLOSED = "the tunnel did not carry a request to the coordinator; the node keeps trying"
SEEN_AT_ANY_TIME = {
    413: "an answer is too large for the coordinator's proxy. Tell the coordinator: client_max_body_size must be 8m",
    502: UNAVAILABLE,
    503: UNAVAILABLE,
    504: UNAVAILABLE,
}
SEEN_AT_ACTIVATION = {
    400: "the coordinator's proxy does not accept this site's certificate. Ask the coordinator whether it has "
    "expired or was withdrawn",
    403: "the coordinator's proxy refuses this site: its certificate and its node key do not belong together. Use "
    "the welcome.json that was made for this node folder's enrollment.json",
    404: "there is a server at the coordinator's address, but no coordinator. Ask the coordinator for the right "
    "address, and look for a proxy on the way",
    412: "the coordinator runs another version of Flower. Install the version of this program that the coordinator "
    "names",
}


def refusal(method: str, status: int, code: int, ahead_s: int, old_session: bool) -> str:
    """Words for a refused request, empty where it says nothing of the connection.

    ``ahead_s`` is by how many seconds this clock is ahead of the coordinator's, ``old_session`` whether this node was
    connected a moment ago.
    """
    if status == 401:
        return _unauthorized(method, ahead_s)
    if status in SEEN_AT_ANY_TIME:
        return SEEN_AT_ANY_TIME[status]
    if method in ("PullMessages", "SendNodeHeartbeat") and status != 403:  # that may be the end of a run
        return f"the coordinator's proxy answered with status {status}, after which the SuperNode gives up"
    if method != "ActivateNode":
        return ""
    if status == 412 and code == ACTIVATION_FAILED:
        return OLD_SESSION if old_session else UNKNOWN_KEY
    return SEEN_AT_ACTIVATION.get(status, f"the coordinator refuses the node with status {status}")


def _unauthorized(method: str, ahead_s: int) -> str:
    if ahead_s >= CLOCK_AHEAD_S or ahead_s <= -CLOCK_BEHIND_S:
        way = "ahead of" if ahead_s > 0 else "behind"
        return (
            f"the coordinator refuses this node because this machine's clock is {abs(ahead_s)} s {way} its own. "
            "Set the clock, best by NTP"
        )
    if method == "ActivateNode":
        return (
            "the coordinator does not accept this node's signature. Use the welcome.json that was made for this node "
            "folder's enrollment.json"
        )
    return (
        "the coordinator no longer accepts this node: its registration was removed or replaced. Ask the coordinator"
    )


def transport_trouble(kind: str, text: str, address: str) -> str:
    """Words for a request that got no answer: ``kind`` is httpx's name of the error, ``text`` what it says."""
    lowered = text.lower()
    if "certificate_verify_failed" in lowered or "certificate verify failed" in lowered:
        return _unverified(lowered, address)
    if "name or service not known" in lowered or "name resolution" in lowered or "nodename nor" in lowered:
        return f"the coordinator's name in {address} is not known. Check the network's DNS, or the address"
    if "ssl" in lowered or "tls" in lowered:
        return f"no TLS connection to {address} came about ({text.strip()}). Look for a proxy or firewall on the way"
    return (
        f"the coordinator at {address} cannot be reached ({text.strip() or kind}); the node keeps trying. Ask your "
        "network's people whether this machine may open connections to it"
    )


def _unverified(lowered: str, address: str) -> str:
    """TLS worked, but who answered is not who welcome.json says."""
    if "expired" in lowered:
        return f"the certificate at {address} has expired, or this machine's clock is wrong. Check the clock first"
    if "not yet valid" in lowered:
        return f"the certificate at {address} is not valid yet: this machine's clock is behind. Set it by NTP"
    if "mismatch" in lowered or "not valid for" in lowered:
        return (
            f"the certificate at {address} is for another name. Use the address that the coordinator's welcome names"
        )
    return (
        f"the server at {address} does not have a certificate of the authority in welcome.json. Ask the coordinator "
        "for a new welcome; if its certificate is right, something on the way intercepts the connection"
    )


def tunnel_trouble(line: str, address: str) -> str:
    """Words for a line of stunnel's log, empty where it says nothing of the kind."""
    lowered = line.lower()
    if (
        "certificate verify failed" in lowered
        or "cert: no matching" in lowered
        or "pre-verification error" in lowered
    ):
        if "no matching" in lowered:
            return _unverified("mismatch", address)
        return _unverified(lowered, address)
    if "alert" in lowered and ("certificate" in lowered or "unknown ca" in lowered):
        return SEEN_AT_ACTIVATION[400]
    if "connect" in lowered and ("refused" in lowered or "timed out" in lowered or "no route" in lowered):
        return transport_trouble("", "no connection", address)
    if "error resolving" in lowered:
        return transport_trouble("", "name or service not known", address)
    return ""
