"""The images of every cluster; sizes are those of the real ones on amd64."""

from __future__ import annotations

from typing import Final

from emulator.workloads.echo import agnhost, hello_app, http_echo, pause, whoami
from emulator.workloads.nginx import full_version, nginx, page_time, welcome_page
from emulator.workloads.registry import Definition, Image, ImageRegistry

_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_BUSYBOX_PATH: Final = {"PATH": _PATH}
_ETC: Final = {
    "/etc/passwd": b"root:x:0:0:root:/root:/bin/sh\n",
    "/etc/group": b"root:x:0:\n",
}

DEFINITIONS: Final = (
    Definition(
        repository=r"docker\.io/library/nginx|docker\.io/nginxinc/nginx-unprivileged|"
        r"public\.ecr\.aws/docker/library/nginx|registry\.k8s\.io/nginx(-slim)?|"
        r"(gcr\.io/google[-_]containers|k8s\.gcr\.io)/nginx(-slim)?",
        entrypoint=(),
        command=("nginx", "-g", "daemon off;"),
        programs={"nginx": nginx},
        size_bytes=72_225_394,
        style="gnu",
        env={"PATH": _PATH, "NGINX_VERSION": "{tag}"},
        files=_ETC,
    ),
    Definition(
        repository=r"docker\.io/library/busybox|gcr\.io/google[-_]containers/busybox|"
        r"(registry\.k8s\.io|k8s\.gcr\.io)/(e2e-test-images/)?busybox|"
        r"docker\.io/radial/busyboxplus",
        entrypoint=(),
        command=("sh",),
        programs={},
        size_bytes=2_156_519,
        style="busybox",
        env=_BUSYBOX_PATH,
        files=_ETC,
    ),
    Definition(
        repository=r"docker\.io/library/alpine|docker\.io/nicolaka/netshoot|"
        r"docker\.io/wbitt/network-multitool|docker\.io/praqma/network-multitool",
        entrypoint=(),
        command=("/bin/sh",),
        programs={},
        size_bytes=3_626_897,
        style="busybox",
        env=_BUSYBOX_PATH,
        files=_ETC,
    ),
    Definition(
        repository=r"docker\.io/library/(debian|ubuntu|centos)",
        entrypoint=(),
        command=("bash",),
        programs={},
        size_bytes=48_484_523,
        style="gnu",
        env={"PATH": _PATH},
        files=_ETC,
    ),
    Definition(
        repository=r"docker\.io/curlimages/curl|docker\.io/appropriate/curl|quay\.io/curl/curl",
        entrypoint=("curl",),
        command=("--help",),
        programs={},
        size_bytes=9_457_812,
        style="busybox",
        env={**_BUSYBOX_PATH, "CURL_CA_BUNDLE": "/cacert.pem"},
        files=_ETC,
        working_dir="/home/curl_user",
    ),
    Definition(
        repository=r"(registry\.k8s\.io|k8s\.gcr\.io|gcr\.io/google[-_]containers)"
        r"/pause(-amd64)?",
        entrypoint=("/pause",),
        command=(),
        programs={"pause": pause},
        size_bytes=321_520,
        style="",
        env={"PATH": _PATH},
    ),
    Definition(
        repository=r"(registry\.k8s\.io|k8s\.gcr\.io)/e2e-test-images/agnhost|"
        r"docker\.io/(k8s)?e2eteam/agnhost",
        entrypoint=("/agnhost",),
        command=("pause",),
        programs={"agnhost": agnhost},
        size_bytes=52_494_448,
        style="busybox",
        env=_BUSYBOX_PATH,
        files=_ETC,
    ),
    Definition(
        repository=r"docker\.io/(traefik|containous)/whoami",
        entrypoint=("/whoami",),
        command=(),
        programs={"whoami": whoami},
        size_bytes=2_929_433,
        style="",
        env={"PATH": _PATH},
    ),
    Definition(
        repository=r"(gcr\.io/google-samples|us-docker\.pkg\.dev/google-samples/containers/gke)"
        r"/hello-app",
        tags=r"1\.0|latest",
        entrypoint=(),
        command=("./hello-app",),
        programs={"hello-app": hello_app},
        size_bytes=11_543_180,
        style="",
        env={"PATH": _PATH, "PORT": "8080", "HELLO_VERSION": "1.0.0"},
    ),
    Definition(
        repository=r"(gcr\.io/google-samples|us-docker\.pkg\.dev/google-samples/containers/gke)"
        r"/hello-app",
        tags=r"2\.0",
        entrypoint=(),
        command=("./hello-app",),
        programs={"hello-app": hello_app},
        size_bytes=11_543_186,
        style="",
        env={"PATH": _PATH, "PORT": "8080", "HELLO_VERSION": "2.0.0"},
    ),
    Definition(
        repository=r"docker\.io/hashicorp/http-echo",
        entrypoint=("/http-echo",),
        command=(),
        programs={"http-echo": http_echo},
        size_bytes=3_138_302,
        style="",
        env={"PATH": _PATH},
    ),
)


def default_registry() -> ImageRegistry:
    """The registry every node starts with."""
    return ImageRegistry(DEFINITIONS)


def image_files(image: Image) -> dict[str, tuple[bytes, float]]:
    """The image's own files: path → (content, modification time in Unix seconds)."""
    files = {path: (data, 0.0) for path, data in image.definition.files.items()}
    if "nginx" in image.definition.programs:
        version = full_version(image.reference.tag)
        page = (welcome_page(version), page_time(version))
        files["/usr/share/nginx/html/index.html"] = page
    return files


def image_env(image: Image) -> dict[str, str]:
    """The environment the image sets."""
    env = image.env
    if "NGINX_VERSION" in env:
        env["NGINX_VERSION"] = full_version(image.reference.tag)
    return env
