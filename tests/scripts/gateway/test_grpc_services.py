"""The services that the gateway translates are those of the protocols, name by name and number by number."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import google.api.annotations_pb2
import pytest
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto, FileDescriptorSet
from grpc_tools import protoc
from tritonclient.grpc import service_pb2

from marctl.gateway.listeners import GRPC_SERVICES
from marctl.gateway.open_inference import METHODS
from marctl.stack.torchserve import server_home

INCLUDES = [Path(google.api.annotations_pb2.__file__).parents[2], Path(protoc.__file__).parent / "_proto"]


def compiled(folder: Path, target: Path, *names: str) -> FileDescriptorSet:
    options = [f"-I{path}" for path in (folder, *INCLUDES)]
    assert protoc.main(["", *options, "--include_imports", f"--descriptor_set_out={target}", *names]) == 0
    return FileDescriptorSet.FromString(target.read_bytes())


@pytest.fixture(scope="module")
def ours() -> dict[str, FileDescriptorProto]:
    return {file.name: file for file in FileDescriptorSet.FromString(GRPC_SERVICES.read_bytes()).file}


def test_the_compiled_file_is_what_the_readable_ones_say(ours: Any, tmp_path: Path) -> None:
    names = sorted(path.name for path in GRPC_SERVICES.parent.glob("*.proto"))
    found = {file.name: file for file in compiled(GRPC_SERVICES.parent, tmp_path / "x.pb", *names).file}
    for name in names:
        assert ours[name] == found[name]


def fields(messages: Any) -> Iterator[tuple[Any, ...]]:
    for message in messages:
        for field in message.field:
            yield message.name, field.name, field.number, field.type, field.label, field.type_name
        yield from fields(message.nested_type)


def test_open_inference_messages_are_those_of_its_clients(ours: Any) -> None:
    theirs = FileDescriptorProto()
    service_pb2.DESCRIPTOR.CopyToProto(theirs)
    known = {message.name: message for message in theirs.message_type}
    for message in ours["open_inference.proto"].message_type:
        assert set(fields([message])) <= set(fields([known[message.name]])), message.name


def test_torchserves_messages_are_its_own(ours: Any, tmp_path: Path) -> None:
    with zipfile.ZipFile(server_home() / "ts" / "frontend" / "model-server.jar") as jar:
        (tmp_path / "inference.proto").write_bytes(jar.read("proto/inference.proto"))
    theirs = {file.name: file for file in compiled(tmp_path, tmp_path / "x.pb", "inference.proto").file}
    known: dict[str, DescriptorProto] = {m.name: m for m in theirs["inference.proto"].message_type}
    for message in ours["torchserve.proto"].message_type:
        assert set(fields([message])) <= set(fields([known[message.name]])), message.name


def test_every_method_has_its_route(ours: Any) -> None:
    declared = {
        f"{ours[name].package}.{service.name}/{method.name}"
        for name in ("open_inference.proto", "torchserve.proto")
        for service in ours[name].service
        for method in service.method
    }
    assert declared == set(METHODS)
