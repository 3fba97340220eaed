"""Files of `deploy/`: what can be said of them without building and starting anything."""

import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from test_layout import usage

yaml = pytest.importorskip("yaml")
ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
FILLED_IN = {"KIND": "cpu", "DOMAIN": "live.example.org", "PUBLIC_ADDRESS": "203.0.113.5"}


def read(name: str) -> list[Any]:
    """Documents of a YAML file, with what stands for a setting filled in."""
    text = re.sub(r"\$\{(\w+)[^}]*\}", lambda found: FILLED_IN.get(found[1], "secret"), (DEPLOY / name).read_text())
    return list(yaml.safe_load_all(text))


def test_constraints_are_what_the_project_asks_for() -> None:
    """One version of each dependency, and one that pyproject.toml allows."""
    lines = [line for line in (DEPLOY / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    versions = dict(line.split("==") for line in lines)
    assert len(versions) == len(lines)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for asked in map(Requirement, [*project["dependencies"], *extras["gpu"], *extras["ray"]]):
        assert asked.specifier.contains(versions[asked.name]), asked


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_dockerfiles_copy_what_exists(kind: str) -> None:
    """Each file that is copied from the repository is there; hadolint, where it is installed, has nothing to say."""
    path = DEPLOY / f"{kind}.Dockerfile"
    for line in re.findall(r"^COPY (?!--from)(.*)$", path.read_text(), re.MULTILINE):
        *sources, _ = line.split()
        assert all((ROOT / source).exists() for source in sources), line
    if (hadolint := shutil.which("hadolint")) is not None:
        done = subprocess.run([hadolint, path], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize(
    "name", ["cpu.Dockerfile", "gpu.Dockerfile", "compose.yaml", "ray-cluster.yaml", "kubernetes.yaml"]
)
def test_options_exist(name: str) -> None:
    """Each option that is given to the server is one of its own."""
    text = (DEPLOY / name).read_text()
    begin = text.rindex(
        "landiff-live\n" if name == "compose.yaml" else "landiff-live --host" if "yaml" in name else "CMD"
    )
    command = re.split(r"\n\n|\n *cap_add|\n *env:|> /tmp", text[begin:])[0]
    options = re.findall(r"(?<![\w-])--[a-z][a-z-]*", command)
    assert "--host" in options and all(option in usage("server", None) for option in options), options


def test_the_compose_file_is_one() -> None:
    """Its services are those that the documents name; with compose_spec, where it is installed, it is of the schema."""
    (compose,), (gpu,) = read("compose.yaml"), read("compose.gpu.yaml")
    assert compose["services"].keys() == {"server", "turn", "proxy"} and gpu["services"].keys() == {"server"}
    mounts = [mount.split(":")[0] for service in compose["services"].values() for mount in service.get("volumes", [])]
    files = {DEPLOY / mount for mount in mounts if mount.startswith("./")} - {DEPLOY / "tls"}
    assert files and all(file.exists() for file in files)
    asked = set(re.findall(r"\$\{(\w+)", (DEPLOY / "compose.yaml").read_text()))
    assert asked == set(re.findall(r"^(\w+)=", (DEPLOY / "example.env").read_text(), re.MULTILINE))
    compose_spec = pytest.importorskip("compose_spec")
    for one in (compose, gpu):
        compose_spec.PyCompose.from_json(json.dumps(one))


def test_nginx_takes_the_template(tmp_path: Path) -> None:
    """With a certificate in place, nginx finds nothing wrong with it."""
    nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if nginx is None:
        pytest.skip("nginx is not installed")
    from certificate import make_certificate

    certificate, key = make_certificate(tmp_path)
    text = (DEPLOY / "nginx.conf.template").read_text().replace("${DOMAIN}", "localhost")
    text = text.replace("/etc/nginx/tls/fullchain.pem", str(certificate)).replace(
        "/etc/nginx/tls/privkey.pem", str(key)
    )
    text = re.sub(r"listen (\d+)", lambda found: f"listen 127.0.0.1:2{found[1]}", text)
    (tmp_path / "nginx.conf").write_text(f"pid {tmp_path}/pid;\nevents {{}}\nhttp {{\n{text}\n}}\n")
    argv = [nginx, "-t", "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf"), "-e", "stderr"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_the_ray_cluster_file_is_one() -> None:
    """It is of Ray's own schema."""
    jsonschema, ray = pytest.importorskip("jsonschema"), pytest.importorskip("ray")
    (cluster,) = read("ray-cluster.yaml")
    schema = json.loads((Path(ray.__file__).parent / "autoscaler/ray-schema.json").read_text())
    jsonschema.validate(cluster, schema)


def test_the_kubernetes_example_is_one() -> None:
    """Services and deployments name each other; kubernetes-validate, where it is installed, knows all fields."""
    documents = read("kubernetes.yaml")
    roles = [one["spec"]["template"]["metadata"]["labels"] for one in documents if one["kind"] == "Deployment"]
    assert all(one["spec"]["selector"] in roles for one in documents if one["kind"] == "Service")
    names = {one["metadata"]["name"] for one in documents if one["kind"] == "Service"}
    engines = documents[-1]["spec"]["template"]["spec"]["containers"][0]["command"]
    assert f"--address={min(names & {'landiff-ray'})}:6379" in engines
    validate = pytest.importorskip("kubernetes_validate")
    for document in documents:
        validate.validate(document, validate.latest_version(), strict=True)
