"""The nginx configuration: from outside, the paths of Flower's Fleet API and nothing else.

The SuperLink reads whole bodies before it asks who sends them, and shows its Control API on the same port. A site's
node gives up for good on most answers of 400 and above, so what nginx refuses for a while it refuses with 503.

What nginx says goes to its output, and so into logs/proxy.log, which is kept within bounds.
"""

from __future__ import annotations

from pathlib import Path

from flexmoe_core.enrollment import Roster, flower_header
from server.deployment.settings import CoordinatorSettings, in_brackets

FLEET_CALLS = (
    "activate-node",
    "deactivate-node",
    "send-node-heartbeat",
    "pull-messages",
    "push-messages",
    "get-run",
    "get-fab",
    "push-object",
    "pull-object",
    "confirm-message-received",
)
LARGEST_BODY = "8m"
"""Above Flower's chunks of 5 MiB."""

TEMPLATE = """\
# Written by flexmoe-server; changes are lost at the next enrollment.
daemon off;
pid {folder}/run/nginx.pid;
error_log stderr info;
worker_processes auto;
events {{ worker_connections 1024; }}
http {{
  server_tokens off;
  log_format who '$remote_addr "{who_connects}" "$request" $status $bytes_sent';
  access_log /dev/stdout who;
  client_body_temp_path {folder}/run/nginx-body;
  proxy_temp_path {folder}/run/nginx-proxy;
  fastcgi_temp_path {folder}/run/nginx-unused;
  uwsgi_temp_path {folder}/run/nginx-unused;
  scgi_temp_path {folder}/run/nginx-unused;
  # uvicorn closes idle connections after five seconds
  upstream superlink {{ server 127.0.0.1:{inside_port}; keepalive 16; keepalive_timeout 4s; }}
{binding}
  limit_req_zone {who} zone=requests:1m rate={rate}r/s;
  limit_req_status 503;
  limit_conn_zone {who} zone=connections:1m;
  limit_conn_status 503;
  server {{
    listen {listen}:{port} ssl;
    ssl_protocols TLSv1.2 TLSv1.3;
    ssl_certificate {folder}/server.crt;
    ssl_certificate_key {folder}/server.key;
{client_certificates}
    location / {{ return 404; }}
    location @later {{ return 503; }}
    location ~ "^/v1/fleet/({calls})\\z" {{
{refuse_unbound}      limit_req zone=requests burst=60 nodelay;
      limit_conn connections 12;
      limit_except POST {{ deny all; }}
      error_page 403 429 =503 @later;
      client_max_body_size {largest_body};
      client_body_buffer_size 6m;
      client_body_timeout 60s;
      proxy_buffer_size 16k;
      proxy_buffers 12 512k;
      proxy_busy_buffers_size 1m;
      proxy_max_temp_file_size 0;
      proxy_connect_timeout 5s;
      proxy_read_timeout 60s;
      proxy_send_timeout 60s;
      # the call that was matched, not what the client wrote for it
      proxy_pass https://superlink/v1/fleet/$1;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_set_header Host $host;
      proxy_ssl_verify on;
      proxy_ssl_trusted_certificate {folder}/authority.crt;
      proxy_ssl_name localhost;
      proxy_ssl_session_reuse on;
    }}
  }}
}}
"""

CLIENT_CERTIFICATES = """\
    ssl_client_certificate {folder}/authority.crt;
    ssl_verify_client on;
    ssl_verify_depth 1;
"""
REFUSE_UNBOUND = "      if ($bound = 0) { return 401; }\n"


def nginx_configuration(folder: Path, settings: CoordinatorSettings, roster: Roster) -> str:
    """The text of nginx.conf; hospitals that were revoked are not in it."""
    outside, bound = settings.outside, settings.outside.client_certificates
    return TEMPLATE.format(
        folder=folder,
        inside_port=settings.inside.port,
        binding=_binding(roster) if bound else "",
        who="$ssl_client_s_dn" if bound else "$binary_remote_addr",
        rate=outside.requests_per_second,
        who_connects="$ssl_client_s_dn, $binding" if bound else "-",
        listen=in_brackets(outside.listen),
        port=outside.port,
        client_certificates=CLIENT_CERTIFICATES.format(folder=folder) if bound else "",
        refuse_unbound=REFUSE_UNBOUND if bound else "",
        calls="|".join(FLEET_CALLS),
        largest_body=LARGEST_BODY,
    )


def _binding(roster: Roster) -> str:
    """Which certificate goes with which node key: nobody gets through with another hospital's."""
    pairs = "".join(
        f'    "CN={site}|{flower_header(member.node_key)}" 1;\n' for site, member in sorted(roster.active.items())
    )
    return (
        "  map_hash_bucket_size 512;\n"
        '  map "$ssl_client_s_dn|$http_flwr_public_key" $bound {\n'
        f"    default 0;\n{pairs}  }}\n"
        '  map $bound $binding { 0 "not with its own node key"; default "with its own node key"; }'
    )
