from __future__ import annotations

import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from server.deployment.settings import InsideSettings
from tests.deployment.command_lines import PROGRAMS, complaint

ROOT = Path(__file__).parents[2]
PARTIES = ("coordinator", "hospital-1", "hospital-2", "hospital-3")
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())
GPU = yaml.safe_load((ROOT / "compose.gpu.yaml").read_text())
DOCKERFILE = (ROOT / "containers" / "Dockerfile").read_text()
PYPROJECT = (ROOT / "pyproject.toml").read_text()
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
SERVICES_BY_TARGET = {service["build"]["target"]: service for service in SERVICES.values()}
SCHEMA = json.loads(
    files("check_jsonschema").joinpath("builtin_schemas", "vendor", "compose-spec.json").read_text(encoding="utf-8")
)

every_party = pytest.mark.parametrize("party", PARTIES)


@pytest.mark.parametrize("file", [COMPOSE, GPU], ids=["compose.yaml", "compose.gpu.yaml"])
def test_files_follow_the_compose_specification(file: dict[str, Any]) -> None:
    jsonschema.validate(file, SCHEMA)


def test_the_schema_would_notice_a_misspelt_key() -> None:
    wrong = {"services": {"coordinator": {"image": "a:1", "read_onyl": True}}}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, SCHEMA)


def test_each_party_is_one_service_with_a_profile_of_its_own() -> None:
    assert {name: service["profiles"] for name, service in SERVICES.items()} == {name: [name] for name in PARTIES}


@every_party
def test_our_parsers_take_every_command(party: str) -> None:
    service = SERVICES[party]
    kind, *words = service["healthcheck"]["test"]
    assert kind == "CMD"
    assert complaint(service["command"]) == ""
    assert complaint(words) == ""


def test_a_wrong_option_is_noticed() -> None:
    assert "--no-such" in complaint(["flexmoe-server", "start", "/coordinator", "--no-such"])
    assert "DIR" in complaint(["flexmoe-server", "start"])


@every_party
def test_no_party_is_root_or_may_become_it(party: str) -> None:
    service = SERVICES[party]
    uid, gid = service["user"].split(":")
    assert int(uid) > 0 and int(gid) > 0
    assert service["cap_drop"] == ["ALL"] and "cap_add" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not service.get("privileged") and not {"pid", "ipc", "network_mode", "devices"} & set(service)
    assert service["read_only"] is True


@pytest.mark.parametrize("target", ["coordinator", "hospital"])
def test_the_image_runs_as_the_user_whom_its_folders_belong_to(target: str) -> None:
    stage = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)
    text = next(one for one in stage if one.splitlines()[0].endswith(f"AS {target}"))
    assert re.findall(r"^USER (.+)$", text, flags=re.MULTILINE) == [SERVICES_BY_TARGET[target]["user"]]
    assert f"chown {SERVICES_BY_TARGET[target]['user']}" in text


@every_party
def test_only_the_proxy_is_published(party: str) -> None:
    published = [(port["target"], port["published"]) for port in SERVICES[party].get("ports", [])]
    assert published == ([(443, "443")] if party == "coordinator" else [])
    inside = InsideSettings()
    assert {inside.port, inside.health_port}.isdisjoint(target for target, _ in published)
    assert "expose" not in SERVICES[party]


def test_hospitals_share_no_network() -> None:
    networks = {name: set(SERVICES[name]["networks"]) for name in PARTIES if name != "coordinator"}
    assert set(COMPOSE["networks"]) == set(SERVICES["coordinator"]["networks"]) == set.union(*networks.values())
    assert sum(map(len, networks.values())) == len(set.union(*networks.values()))


@every_party
def test_limits_are_set(party: str) -> None:
    service = SERVICES[party]
    assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory", "pids"}
    assert service["stop_grace_period"] == "30s" and service["restart"] == "unless-stopped"
    assert set(service["logging"]["options"]) == {"max-size", "max-file"}
    assert all("size=" in one for one in service["tmpfs"])


@every_party
def test_folders_are_the_partys_own_and_patients_are_read_only(party: str) -> None:
    volumes = {volume["target"]: volume for volume in SERVICES[party]["volumes"]}
    assert all(one["type"] == "bind" and not one["bind"]["create_host_path"] for one in volumes.values())
    writable = {target for target, volume in volumes.items() if not volume.get("read_only")}
    assert writable == ({"/coordinator"} if party == "coordinator" else {"/node"})
    named = [word for word in SERVICES[party]["command"] if word.startswith("/")]
    assert set(named) == set(volumes)


def test_no_two_parties_share_a_folder_that_one_may_write() -> None:
    sources = [
        volume["source"]
        for service in SERVICES.values()
        for volume in service["volumes"]
        if not volume.get("read_only")
    ]
    assert len(sources) == len(set(sources)) == len(PARTIES)


def test_no_named_volume_or_secret_is_undeclared() -> None:
    used = {secret for service in SERVICES.values() for secret in service.get("secrets", [])}
    named = {
        volume["source"]
        for service in SERVICES.values()
        for volume in service["volumes"]
        if volume["type"] == "volume"
    }
    assert used == set(COMPOSE.get("secrets", {}))
    assert named == set(COMPOSE.get("volumes", {}))


@every_party
def test_images_are_pinned_to_this_version(party: str) -> None:
    version = re.search(r'^version = "(.+)"$', PYPROJECT, flags=re.MULTILINE)
    assert version is not None
    image = SERVICES[party]["image"]
    assert image == f"flexmoe/{'coordinator' if party == 'coordinator' else 'hospital'}:{version[1]}"
    assert SERVICES[party]["build"]["dockerfile"] == "containers/Dockerfile"
    assert f"AS {SERVICES[party]['build']['target']}\n" in DOCKERFILE


def test_the_base_image_is_pinned_to_a_patch_version() -> None:
    assert re.search(r"^ARG PYTHON=python:3\.11\.\d+-slim-[a-z]+$", DOCKERFILE, flags=re.MULTILINE)
    stages = set(re.findall(r"^FROM \S+ AS (\S+)$", DOCKERFILE, flags=re.MULTILINE))
    assert set(re.findall(r"^FROM (\S+)", DOCKERFILE, flags=re.MULTILINE)) <= {"${PYTHON}", *stages}


def test_every_requirement_has_one_version_in_the_image() -> None:
    lines = (ROOT / "containers" / "constraints.txt").read_text().splitlines()
    pinned = {line.partition("==")[0] for line in lines if not line.startswith("#")}
    assert all("==" in line for line in lines if not line.startswith("#"))
    block = re.search(
        r"^dependencies = \[\n(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.MULTILINE | re.DOTALL
    )
    assert block is not None
    assert {name.lower() for name in re.findall(r'^    "([A-Za-z0-9-]+)', block[1], flags=re.MULTILINE)} <= pinned


def test_nothing_is_copied_into_an_image_but_code() -> None:
    ignored = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert ignored[0] == "*"
    admitted = {line[1:].removesuffix("/**") for line in ignored if line.startswith("!")}
    copied = {
        word.rstrip("/")
        for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, flags=re.MULTILINE)
        for word in line.split()[:-1]
    }
    assert copied == admitted
    code = {".py", ".j2", ".toml", ".md", ".txt", ".html", ".css", ".js", ""}
    found = {
        file.suffix
        for name in admitted
        for file in ([ROOT / name] if (ROOT / name).is_file() else (ROOT / name).rglob("*"))
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert found <= code


def test_every_party_reserves_a_gpu_in_the_file_for_gpus() -> None:
    assert set(GPU["services"]) == set(PARTIES) - {"coordinator"}
    for service in GPU["services"].values():
        (device,) = service["deploy"]["resources"]["reservations"]["devices"]
        assert device["capabilities"] == ["gpu"]


def test_programs_of_commands_are_ours() -> None:
    assert {service["command"][0] for service in SERVICES.values()} <= set(PROGRAMS)
