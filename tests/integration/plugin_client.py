"""Speaks Terraform's plugin protocol 6 to the provider, as Terraform itself does.

Run by test_plugin_protocol.py under .venv-terraform, where the protocol's stubs are:

    python plugin_client.py PROVIDER

It reads one JSON object a line, {"call": "plan", "type": …, "prior": …, "config": …}, and answers
one a line. Unknown values are "<unknown>".
"""

from __future__ import annotations

import base64
import json
import ssl
import subprocess
import sys
from typing import Any

import grpc
from tf.gen import tfplugin_pb2 as pb
from tf.gen import tfplugin_pb2_grpc
from tf.types import Unknown
from tf.utils import read_dynamic_value, to_dynamic_value

_UNKNOWN = "<unknown>"


def handshake(provider: str) -> tuple[subprocess.Popen[str], grpc.Channel]:
    """go-plugin's: version | protocol | network | address | grpc | certificate."""
    process = subprocess.Popen([provider], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    version, protocol, network, address, kind, chain = process.stdout.readline().split("|")
    assert (version, protocol, network, kind) == ("1", "6", "unix", "grpc")
    der = base64.b64decode(chain.strip() + "=" * (-len(chain.strip()) % 4))
    pem = ssl.DER_cert_to_PEM_cert(der).encode()
    credentials = grpc.ssl_channel_credentials(pem)
    options = [("grpc.ssl_target_name_override", "localhost")]
    return process, grpc.secure_channel(f"unix://{address}", credentials, options=options)


def told(answer: Any) -> list[str]:
    return [f"{item.summary}: {item.detail}" for item in answer.diagnostics]


class Client:
    def __init__(self, stub: Any) -> None:
        self._stub = stub

    def schema(self) -> dict[str, Any]:
        answer = self._stub.GetProviderSchema(pb.GetProviderSchema.Request())
        return {
            "resources": sorted(answer.resource_schemas),
            "data": sorted(answer.data_source_schemas),
        }

    def configure(self, config: Any) -> dict[str, Any]:
        request = pb.ConfigureProvider.Request(config=to_dynamic_value(config))
        return {"told": told(self._stub.ConfigureProvider(request))}

    def data(self, type: str) -> dict[str, Any]:
        request = pb.ReadDataSource.Request(type_name=type, config=to_dynamic_value({}))
        answer = self._stub.ReadDataSource(request)
        return {"state": read_dynamic_value(answer.state), "told": told(answer)}

    def plan(self, type: str, prior: Any, config: dict[str, Any]) -> dict[str, Any]:
        """`config` names every attribute: null for those that nobody set."""
        proposed = {
            name: prior[name] if prior and value is None else value
            for name, value in config.items()
        }
        request = pb.PlanResourceChange.Request(
            type_name=type,
            prior_state=to_dynamic_value(prior) if prior else _null(),
            proposed_new_state=to_dynamic_value(proposed),
            config=to_dynamic_value(config),
        )
        answer = self._stub.PlanResourceChange(request)
        replaced = [step.attribute_name for path in answer.requires_replace for step in path.steps]
        state = read_dynamic_value(answer.planned_state)
        return {"state": state, "replaced": replaced, "told": told(answer)}

    def apply(self, type: str, prior: Any, planned: Any) -> dict[str, Any]:
        request = pb.ApplyResourceChange.Request(
            type_name=type,
            prior_state=to_dynamic_value(prior) if prior else _null(),
            planned_state=to_dynamic_value(planned) if planned else _null(),
        )
        answer = self._stub.ApplyResourceChange(request)
        return {"state": read_dynamic_value(answer.new_state), "told": told(answer)}

    def read(self, type: str, state: Any) -> dict[str, Any]:
        request = pb.ReadResource.Request(type_name=type, current_state=to_dynamic_value(state))
        answer = self._stub.ReadResource(request)
        return {"state": read_dynamic_value(answer.new_state), "told": told(answer)}

    def import_(self, type: str, id: str) -> dict[str, Any]:
        answer = self._stub.ImportResourceState(
            pb.ImportResourceState.Request(type_name=type, id=id)
        )
        found = [read_dynamic_value(item.state) for item in answer.imported_resources]
        return {"state": found[0] if found else None, "told": told(answer)}


def _null() -> Any:
    # MessagePack's nil.
    return pb.DynamicValue(msgpack=b"\xc0")


def known(value: Any) -> Any:
    """`<unknown>` in, Unknown out, at any depth."""
    if isinstance(value, dict):
        return {name: known(item) for name, item in value.items()}
    return Unknown if value == _UNKNOWN else value


def main() -> None:
    process, channel = handshake(sys.argv[1])
    try:
        client = Client(tfplugin_pb2_grpc.ProviderStub(channel))
        for line in sys.stdin:
            request = known(json.loads(line))
            answer = getattr(client, request.pop("call"))(**request)
            print(json.dumps(answer, default=lambda _: _UNKNOWN), flush=True)
    finally:
        channel.close()
        process.terminate()
        process.wait()


if __name__ == "__main__":
    main()
