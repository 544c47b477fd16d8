"""The files of tools/docker: what can be checked of them without a registry and a cluster."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "tools/docker"
SUFFIXES = re.compile(r"_(total|bucket|sum|count)$")


def versions(file: Path) -> dict[str, str]:
    """Distribution -> version, of a file with a pin a line."""
    found = re.findall(r"(?m)^([\w.-]+)(?:\[[\w,-]+\])?==([^\s;\\]+)", file.read_text())
    return {name.lower().replace("_", "-").replace(".", "-"): version for name, version in found}


@pytest.mark.parametrize("name", ["cpu", "cuda", "build"])
def test_what_is_installed_is_what_is_tested_and_pinned_by_hash(name: str) -> None:
    file = DOCKER / f"requirements-{name}.txt"
    tested = versions(ROOT / "constraints.txt")
    pins = versions(file)
    assert {one: version for one, version in pins.items() if tested.get(one, version) != version} == {}, (
        "constraints.txt has changed: run tools/docker/lock"
    )
    entries = re.split(r"(?m)^(?=[\w.-]+(?:\[[\w,-]+\])?==)", file.read_text())
    assert all("--hash=sha256:" in entry for entry in entries if "==" in entry)


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_every_dependency_is_in_the_image(name: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"][name]]
    names = {re.match(r"[\w.-]+", line)[0].lower().replace("_", "-") for line in wanted}  # type: ignore[index]
    assert names <= versions(DOCKER / f"requirements-{name}.txt").keys(), "run tools/docker/lock"


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.cuda"])
def test_an_image_is_built_in_two_stages_from_hashes_and_runs_as_nobody(name: str) -> None:
    lines = (DOCKER / name).read_text().splitlines()
    assert sum(line.startswith("FROM ") for line in lines) == 2
    assert sum("--require-hashes" in line for line in lines) == 2
    last = lines[max(index for index, line in enumerate(lines) if line.startswith("FROM ")) :]
    assert "USER 10001:10001" in last
    assert "VOLUME /models" in last


def test_all_yaml_can_be_read_and_names_files_that_are_there() -> None:
    for file in DOCKER.rglob("*.y*ml"):
        assert list(yaml.safe_load_all(file.read_text()))
    for file in DOCKER.glob("compose.*.yaml"):
        for service in yaml.safe_load(file.read_text())["services"].values():
            for volume in service.get("volumes", ()):
                source = volume.partition(":")[0]
                assert not source.startswith(".") or (DOCKER / source).is_file()


def test_kubernetes_asks_the_right_addresses_and_waits_for_the_drain() -> None:
    documents = {one["kind"]: one for one in yaml.safe_load_all((DOCKER / "k8s.yaml").read_text())}
    pod = documents["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    paths = {probe: container[probe]["httpGet"]["path"] for probe in container if probe.endswith("Probe")}
    assert paths == {"startupProbe": "/ready", "readinessProbe": "/ready", "livenessProbe": "/health"}
    drain = int(container["args"][container["args"].index("--shutdown-timeout") + 1])
    pause = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > drain + pause
    assert pod["securityContext"]["runAsNonRoot"]


def test_dashboard_and_alerts_ask_for_metrics_that_there_are() -> None:
    source = (ROOT / "server/http/metrics.py").read_text() + (ROOT / "server/http/app.py").read_text()
    there = set(re.findall(r'"(ocr_[a-z_]+)"', source))
    asked = (DOCKER / "alerts.yml").read_text()
    dashboard: dict[str, Any] = json.loads((DOCKER / "grafana/dashboard.json").read_text())
    for panel in dashboard["panels"]:
        assert panel["targets"], panel["title"]
        asked += "\n".join(target["expr"] for target in panel["targets"])
    names = set(re.findall(r"\bocr_[a-z_]+", asked))
    assert {SUFFIXES.sub("", name) for name in names} <= there
    shown = {SUFFIXES.sub("", name) for name in re.findall(r"\bocr_[a-z_]+", json.dumps(dashboard))}
    assert there - shown <= {"ocr_engine_alive"}


@pytest.mark.parametrize(
    "command",
    [
        ["hadolint", str(DOCKER / "Dockerfile"), str(DOCKER / "Dockerfile.cuda")],
        ["promtool", "check", "config", str(DOCKER / "prometheus.yml")],
        ["kubeconform", "-strict", str(DOCKER / "k8s.yaml")],
    ],
    ids=lambda command: command[0],
)
def test_their_own_checkers_find_nothing(command: list[str]) -> None:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


IMAGE = re.compile(r"(?:docker|ghcr)\.io/[\w./-]+:[\w.-]+(?:@sha256:[0-9a-f]{64})?")


@pytest.mark.skipif(shutil.which("bash") is None, reason="pin is a script of bash")
def test_pin_writes_the_digest_that_docker_tells_behind_every_tag_or_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "docker"
    shutil.copytree(DOCKER, folder)
    stub = tmp_path / "bin/docker"
    stub.parent.mkdir()

    def pin(answer: str) -> int:
        stub.write_text(f'#!/bin/sh\nset -e\ntest "$1 $2 $3" = "buildx imagetools inspect"\n{answer}\n')
        stub.chmod(0o755)
        path = f"{stub.parent}:{os.environ['PATH']}"
        done = subprocess.run(["bash", folder / "pin"], env={**os.environ, "PATH": path}, capture_output=True)
        return done.returncode

    def images() -> dict[str, list[str]]:
        names = [*DOCKER.glob("Dockerfile*"), *DOCKER.glob("*.yaml")]
        return {path.name: IMAGE.findall((folder / path.name).read_text()) for path in names}

    def digest(image: str, salt: str) -> str:
        return f"{image}@sha256:{hashlib.sha256((image + salt).encode()).hexdigest()}"

    tags = {name: [image.partition("@")[0] for image in found] for name, found in images().items()}
    # The base and the builder's own image; Open WebUI; Prometheus and Grafana.
    assert {name: len(found) for name, found in tags.items() if found} == {
        "Dockerfile": 2, "Dockerfile.cuda": 2, "compose.webui.yaml": 1, "compose.metrics.yaml": 2,
    }  # fmt: skip
    before = images()
    assert pin('case "$4" in *grafana*) exit 1;; esac; printf "sha256:%064d" 1') != 0
    assert pin("echo no such thing") != 0
    assert images() == before
    for salt in ("today", "tomorrow"):
        assert pin(f'printf "sha256:"; printf "%s{salt}" "$4" | sha256sum | cut -c1-64') == 0
        assert images() == {name: [digest(tag, salt) for tag in found] for name, found in tags.items()}
    for path in folder.glob("*.yaml"):
        assert list(yaml.safe_load_all(path.read_text()))
