"""Image names and nginx's pages: pure parts of the workloads."""

from __future__ import annotations

import pytest

from emulator.errors import UsageError
from emulator.workloads.images import default_registry, image_env, image_files
from emulator.workloads.nginx import error_body, log_time, page_time, welcome_page
from emulator.workloads.registry import ImageNotFoundError, Reference


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("nginx", "docker.io/library/nginx:latest"),
        ("nginx:1.7.9", "docker.io/library/nginx:1.7.9"),
        ("training/worker:1.0", "docker.io/training/worker:1.0"),
        ("gcr.io/google-samples/gb-frontend:v4", "gcr.io/google-samples/gb-frontend:v4"),
        ("localhost:5000/a/b", "localhost:5000/a/b:latest"),
        ("nginx@sha256:" + "0" * 64, "docker.io/library/nginx@sha256:" + "0" * 64),
    ],
)
def test_a_name_is_normalised_as_docker_does(text: str, full: str) -> None:
    assert str(Reference.parse(text)) == full


@pytest.mark.parametrize("text", ["", "Nginx", "nginx:", "a b", "-x", "nginx:tag:tag"])
def test_a_malformed_name_is_an_operator_error(text: str) -> None:
    with pytest.raises(UsageError, match="invalid reference format"):
        Reference.parse(text)


def test_known_images_resolve_and_say_what_they_run() -> None:
    registry = default_registry()
    image = registry.resolve("nginx:1.7.9")
    assert image.definition.command[0] in image.definition.programs
    assert image_env(image)["NGINX_VERSION"] == "1.7.9"
    assert image.repo_digest.startswith("docker.io/library/nginx@sha256:")
    assert registry.resolve("nginx:1.7.9").image_id == image.image_id
    assert registry.resolve("busybox").definition.command == ("sh",)
    assert registry.resolve("curlimages/curl:8.5.0").definition.entrypoint == ("curl",)


def test_an_unknown_image_answers_as_containerd_does() -> None:
    with pytest.raises(ImageNotFoundError) as error:
        default_registry().resolve("nosuch/image:1")
    assert str(error.value) == (
        'failed to pull and unpack image "docker.io/nosuch/image:1": failed to resolve reference '
        '"docker.io/nosuch/image:1": pull access denied, repository does not exist or may require '
        "authorization: server message: insufficient_scope: authorization failed"
    )


def test_the_welcome_page_has_the_size_of_its_version() -> None:
    assert len(welcome_page("1.7.9")) == 612
    assert len(welcome_page("1.22.1")) == 615
    assert f"{int(page_time('1.7.9')):x}" == "54999765"
    assert len(error_body(404, "1.22.1")) == 153


def test_image_files_carry_the_page() -> None:
    files = image_files(default_registry().resolve("nginx:1.7.9"))
    assert files["/usr/share/nginx/html/index.html"][0] == welcome_page("1.7.9")


def test_log_times_are_nginx_s() -> None:
    assert log_time(1525874322.0) == "09/May/2018:13:58:42 +0000"
