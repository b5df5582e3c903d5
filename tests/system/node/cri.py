"""A small CRI client: what kubelet calls to run a pod, with messages made here so that no kubelet is needed.

Names and numbers are those of cri-api's runtime/v1/api.proto; fields that the tests do not use are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from lab.place import HOST

_FIELD = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    "string": _FIELD.TYPE_STRING,
    "bytes": _FIELD.TYPE_BYTES,
    "int64": _FIELD.TYPE_INT64,
    "int32": _FIELD.TYPE_INT32,
    "uint32": _FIELD.TYPE_UINT32,
}

# message: fields as "name number type", a leading * for repeated.
_MESSAGES = {
    "ImageSpec": ["image 1 string"],
    "AuthConfig": ["username 1 string", "password 2 string"],
    "PullImageRequest": ["image 1 ImageSpec", "auth 2 AuthConfig"],
    "PullImageResponse": ["image_ref 1 string"],
    "ImageStatusRequest": ["image 1 ImageSpec"],
    "Image": ["id 1 string", "*repo_tags 2 string"],
    "ImageStatusResponse": ["image 1 Image"],
    "ListImagesRequest": [],
    "ListImagesResponse": ["*images 1 Image"],
    "RemoveImageRequest": ["image 1 ImageSpec"],
    "RemoveImageResponse": [],
    "ImageFsInfoRequest": [],
    "ImageFsInfoResponse": [],
    "Int64Value": ["value 1 int64"],
    "IDMapping": ["host_id 1 uint32", "container_id 2 uint32", "length 3 uint32"],
    "UserNamespace": ["mode 1 int32", "*uids 2 IDMapping", "*gids 3 IDMapping"],
    "NamespaceOption": [  # enums are int32 on the wire
        "network 1 int32",
        "pid 2 int32",
        "ipc 3 int32",
        "userns_options 5 UserNamespace",
    ],
    "PodSandboxMetadata": ["name 1 string", "uid 2 string", "namespace 3 string", "attempt 4 uint32"],
    "LinuxSandboxSecurityContext": ["namespace_options 1 NamespaceOption"],
    "LinuxPodSandboxConfig": ["cgroup_parent 1 string", "security_context 2 LinuxSandboxSecurityContext"],
    "PodSandboxConfig": [
        "metadata 1 PodSandboxMetadata",
        "hostname 2 string",
        "log_directory 3 string",
        "linux 8 LinuxPodSandboxConfig",
    ],
    "RunPodSandboxRequest": ["config 1 PodSandboxConfig"],
    "RunPodSandboxResponse": ["pod_sandbox_id 1 string"],
    "ContainerMetadata": ["name 1 string"],
    "LinuxContainerSecurityContext": [
        "namespace_options 3 NamespaceOption",
        "run_as_user 5 Int64Value",
        "run_as_username 6 string",
    ],
    "LinuxContainerConfig": ["security_context 2 LinuxContainerSecurityContext"],
    "ContainerConfig": [
        "metadata 1 ContainerMetadata",
        "image 2 ImageSpec",
        "*command 3 string",
        "*args 4 string",
        "log_path 11 string",
        "linux 15 LinuxContainerConfig",
    ],
    "CreateContainerRequest": [
        "pod_sandbox_id 1 string",
        "config 2 ContainerConfig",
        "sandbox_config 3 PodSandboxConfig",
    ],
    "CreateContainerResponse": ["container_id 1 string"],
    "StartContainerRequest": ["container_id 1 string"],
    "StartContainerResponse": [],
    "ExecSyncRequest": ["container_id 1 string", "*cmd 2 string", "timeout 3 int64"],
    "ExecSyncResponse": ["stdout 1 bytes", "stderr 2 bytes", "exit_code 3 int32"],
    "StopPodSandboxRequest": ["pod_sandbox_id 1 string"],
    "StopPodSandboxResponse": [],
    "RemovePodSandboxRequest": ["pod_sandbox_id 1 string"],
    "RemovePodSandboxResponse": [],
}

POD, NODE = 0, 2  # NamespaceMode: the pod's own, the host's


def _classes() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="cri.proto", package="runtime.v1", syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for text in fields:
            field, number, kind = text.removeprefix("*").split()
            entry = message.field.add(name=field, number=int(number))
            entry.label = _FIELD.LABEL_REPEATED if text[0] == "*" else _FIELD.LABEL_OPTIONAL
            if kind in _SCALARS:
                entry.type = _SCALARS[kind]
            else:
                entry.type, entry.type_name = _FIELD.TYPE_MESSAGE, f".runtime.v1.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"runtime.v1.{name}"))
        for name in _MESSAGES
    }


M = _classes()


class Cri:
    """A node as kubelet sees it: containerd's socket for the runtime, and a socket for images.

    Args:
        runtime: containerd's.
        images: nixsnap's, or containerd's too.
    """

    def __init__(self, *, runtime: Path, images: Path) -> None:
        self._channels = {
            "RuntimeService": grpc.insecure_channel(f"unix://{runtime}"),
            "ImageService": grpc.insecure_channel(f"unix://{images}"),
        }

    def close(self) -> None:
        for channel in self._channels.values():
            channel.close()

    def call(self, service: str, method: str, *, timeout: float = 60.0, **fields: Any) -> Any:
        unary = self._channels[service].unary_unary(
            f"/runtime.v1.{service}/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=M[f"{method}Response"].FromString,
        )
        return unary(M[f"{method}Request"](**fields), timeout=timeout)

    def pull(self, reference: str, **auth: str) -> str:
        return self.call(
            "ImageService", "PullImage", image=M["ImageSpec"](image=reference), auth=M["AuthConfig"](**auth)
        ).image_ref

    def image_id(self, reference: str) -> str:
        return self.call("ImageService", "ImageStatus", image=M["ImageSpec"](image=reference)).image.id

    def images(self) -> list[str]:
        return [tag for image in self.call("ImageService", "ListImages").images for tag in image.repo_tags]

    def remove_image(self, reference: str) -> None:
        self.call("ImageService", "RemoveImage", image=M["ImageSpec"](image=reference))

    def run_pod(self, name: str, logs: Path, *, network: int = NODE, first_id: int | None = None) -> Pod:
        """Run a pod's sandbox; with `first_id`, in a user namespace whose root is this user and group outside."""
        config = M["PodSandboxConfig"](
            metadata=M["PodSandboxMetadata"](name=name, uid=name, namespace="default"),
            hostname="" if network == NODE else name,  # with the host's network comes its name
            log_directory=str(logs),
        )
        config.linux.cgroup_parent = f"/{HOST.containerd_namespace}"  # as the kubelet says where
        options = config.linux.security_context.namespace_options
        options.network = network
        if first_id is not None:
            ids = M["IDMapping"](host_id=first_id, container_id=0, length=65536)
            options.userns_options.CopyFrom(M["UserNamespace"](mode=POD, uids=[ids], gids=[ids]))
        sandbox_id = self.call("RuntimeService", "RunPodSandbox", config=config).pod_sandbox_id
        return Pod(self, sandbox_id, config)


class Pod:
    """A running pod sandbox."""

    def __init__(self, cri: Cri, sandbox_id: str, config: Any) -> None:
        self.cri = cri
        self.id = sandbox_id
        self._config = config

    def start(
        self,
        name: str,
        image: str,
        command: Sequence[str] = (),
        *,
        arguments: Sequence[str] = (),
        user: str = "",
    ) -> str:
        """Create and start a container; returns its id."""
        config = M["ContainerConfig"](
            metadata=M["ContainerMetadata"](name=name),
            image=M["ImageSpec"](image=image),
            command=command,
            args=arguments,
            log_path=f"{name}.log",
        )
        config.linux.security_context.namespace_options.CopyFrom(
            self._config.linux.security_context.namespace_options
        )
        config.linux.security_context.run_as_username = user
        container_id = self.cri.call(
            "RuntimeService",
            "CreateContainer",
            pod_sandbox_id=self.id,
            config=config,
            sandbox_config=self._config,
        ).container_id
        self.cri.call("RuntimeService", "StartContainer", container_id=container_id)
        return container_id

    def exec(self, container_id: str, *command: str) -> str:
        result = self.cri.call(
            "RuntimeService", "ExecSync", container_id=container_id, cmd=command, timeout=20
        )
        assert result.exit_code == 0, result.stderr
        return result.stdout.decode()

    def remove(self) -> None:
        self.cri.call("RuntimeService", "StopPodSandbox", pod_sandbox_id=self.id)
        self.cri.call("RuntimeService", "RemovePodSandbox", pod_sandbox_id=self.id)
