"""Clients of other languages against a three-node Region: Python's grpcio (the README's example, typed errors,
health, reflection, deadlines) and AWS's own Encryption SDK on files of `keyward file`, both ways, and from Region to Region.

usage: run.py --keyward PATH_TO_BINARY
"""
import argparse
import json
import logging
import os
import pathlib
import shlex
import subprocess
import sys
import tempfile
import types

import botocore.client

ROOT = pathlib.Path(__file__).resolve().parents[2]
PASSED = 0


def check(name, holds, detail=""):
    global PASSED
    if not holds:
        raise SystemExit(f"failed: {name} {detail}")
    PASSED += 1
    print(f"ok: {name}", flush=True)


def bring_up(keyward, folder, what=("--nodes", "3"), ready="is up"):
    up = subprocess.Popen([keyward, "dev", "up", *what, "--data", folder, "--port-base", "7840"],
                          stdout=subprocess.PIPE, text=True)
    for line in up.stdout:
        if ready in line:
            return up
    raise SystemExit("keyward dev up ended before it was ready")


def environment(keyward, folder, which=()):
    exports = subprocess.run([keyward, "dev", "env", "--data", folder, *which], check=True, capture_output=True, text=True)
    pairs = (shlex.split(line)[1].split("=", 1) for line in exports.stdout.splitlines())
    return dict(pairs)


def compile_protos(out):
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'proto'}", f"--python_out={out}",
                    f"--grpc_python_out={out}", "keyward/v1/kms.proto"], check=True)
    (pathlib.Path(out) / "health.proto").write_text(
        'syntax = "proto3"; package grpc.health.v1;'
        "message HealthCheckRequest { string service = 1; }"
        "message HealthCheckResponse { int32 status = 1; }"
        "service Health { rpc Check(HealthCheckRequest) returns (HealthCheckResponse); }")
    (pathlib.Path(out) / "reflection.proto").write_text(
        'syntax = "proto3"; package grpc.reflection.v1;'
        "message ServerReflectionRequest { string host = 1; string list_services = 7; }"
        "message ServiceResponse { string name = 1; }"
        "message ListServiceResponse { repeated ServiceResponse service = 1; }"
        "message ServerReflectionResponse { ListServiceResponse list_services_response = 6; }"
        "service ServerReflection { rpc ServerReflectionInfo(stream ServerReflectionRequest)"
        " returns (stream ServerReflectionResponse); }")
    for proto in ["health.proto", "reflection.proto"]:
        subprocess.run([sys.executable, "-m", "grpc_tools.protoc", f"-I{out}", f"--python_out={out}",
                        f"--grpc_python_out={out}", proto], check=True)


def grpc_checks(env, out):
    sys.path.insert(0, out)
    import grpc
    import health_pb2
    import health_pb2_grpc
    import reflection_pb2
    import reflection_pb2_grpc
    from keyward.v1 import kms_pb2, kms_pb2_grpc

    # The envelope is google.rpc.Status; its one detail is found by its type, to need no further package.
    def detail(error):
        for name, value in error.trailing_metadata():
            if name == "grpc-status-details-bin":
                at = value.index(b"type.googleapis.com/keyward.v1.ErrorDetail")
                body = value[at + len(b"type.googleapis.com/keyward.v1.ErrorDetail"):]
                assert body[:1] == b"\x12"
                length, start = body[1], 2
                if length >= 128:
                    length, start = (length & 127) | body[2] << 7, 3
                return kms_pb2.ErrorDetail.FromString(body[start:start + length])
        raise SystemExit("an error without its detail")

    read = lambda name: open(env[name], "rb").read()
    tls = grpc.ssl_channel_credentials(read("KEYWARD_CA"), read("KEYWARD_KEY"), read("KEYWARD_CERT"))
    channels = [grpc.secure_channel(endpoint, tls) for endpoint in env["KEYWARD_ENDPOINTS"].split(",")]
    stubs = [kms_pb2_grpc.KeyServiceStub(channel) for channel in channels]
    key = stubs[0].CreateKey(kms_pb2.CreateKeyRequest(Description="clients")).KeyMetadata
    check("metadata is named as AWS names it", key.KeySpec == "SYMMETRIC_DEFAULT" and key.KeyManager == "CUSTOMER")
    blob = stubs[1].Encrypt(kms_pb2.EncryptRequest(KeyId=key.Arn, Plaintext=b"x" * 4096)).CiphertextBlob
    opened = stubs[2].Decrypt(kms_pb2.DecryptRequest(CiphertextBlob=blob))
    check("a ciphertext of one node opens on another", opened.Plaintext == b"x" * 4096)
    check("overhead is at most 160 bytes", len(blob) - 4096 <= 160)
    stubs[2].DisableKey(kms_pb2.DisableKeyRequest(KeyId=key.KeyId))
    for stub in stubs:
        try:
            stub.Decrypt(kms_pb2.DecryptRequest(CiphertextBlob=blob))
            raise SystemExit("a disabled key was used")
        except grpc.RpcError as error:
            got = detail(error)
            check("a refusal carries AWS's name", got.Code == "DisabledException" and not got.Retryable, got)
            check("and AWS's text", got.Message == f"{key.Arn} is disabled.", got.Message)
            check("and its gRPC code", error.code() == grpc.StatusCode.FAILED_PRECONDITION)
    for channel in channels:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ["", "keyward.v1.KeyService"]:
            status = health.Check(health_pb2.HealthCheckRequest(service=service)).status
            check(f"grpc.health.v1 of '{service}'", status == 1)
    reflection = reflection_pb2_grpc.ServerReflectionStub(channels[0])
    request = reflection_pb2.ServerReflectionRequest(list_services="*")
    for answer in reflection.ServerReflectionInfo(iter([request])):
        names = {service.name for service in answer.list_services_response.service}
    check("reflection", {"keyward.v1.KeyService", "keyward.v1.OperatorService"} <= names, names)
    stranger = grpc.secure_channel(env["KEYWARD_ENDPOINTS"].split(",")[0],
                                   grpc.ssl_channel_credentials(read("KEYWARD_CA")))
    try:
        kms_pb2_grpc.KeyServiceStub(stranger).ListKeys(kms_pb2.ListKeysRequest(), timeout=3)
        raise SystemExit("a caller without a certificate got in")
    except grpc.RpcError as error:
        check("no certificate, no call", error.code() == grpc.StatusCode.UNAVAILABLE, error.code())
    stubs[0].EnableKey(kms_pb2.EnableKeyRequest(KeyId=key.KeyId))
    return key.Arn


def file_checks(keyward, env, arn, folder):
    cross = [sys.executable, str(ROOT / "tests/esdk/cross.py")]
    connection = ["--endpoint", env["KEYWARD_ENDPOINTS"].split(",")[0], "--ca", env["KEYWARD_CA"],
                  "--cert", env["KEYWARD_CERT"], "--key", env["KEYWARD_KEY"], "--key-id", arn,
                  "--proto-dir", str(ROOT / "proto")]
    full = {**os.environ, **env}
    content = os.urandom(300_001)
    plain, ours, theirs, back = (os.path.join(folder, name) for name in ["plain", "ours", "theirs", "back"])
    pathlib.Path(plain).write_bytes(content)
    for suite, flag in [("0x0478", []), ("0x0578", ["--signed"])]:
        subprocess.run([keyward, "file", "encrypt", "--key-id", arn, plain, "-o", ours, "--force",
                        "--context", "tenant=a", *flag], check=True, env=full, stdout=subprocess.DEVNULL)
        subprocess.run([*cross, "decrypt", "--suite", suite, "--in", ours, "--out", back, "--context", "tenant=a",
                        *connection], check=True, stdout=subprocess.DEVNULL)
        check(f"AWS's SDK opens a file of ours, {suite}", pathlib.Path(back).read_bytes() == content)
        subprocess.run([*cross, "encrypt", "--suite", suite, "--in", plain, "--out", theirs, "--context", "tenant=a",
                        *connection], check=True, stdout=subprocess.DEVNULL)
        subprocess.run([keyward, "file", "decrypt", theirs, "-o", back, "--force", "--context", "tenant=a"],
                       check=True, env=full, stdout=subprocess.DEVNULL)
        check(f"we open a file of AWS's SDK, {suite}", pathlib.Path(back).read_bytes() == content)


class BotoLike(botocore.client.BaseClient):
    """A Region of Keyward, spoken to as the SDK speaks to boto3's KMS client."""

    def __init__(self, kms, region):
        self._kms, self._region = kms, region

    @property
    def meta(self):
        return types.SimpleNamespace(region_name=self._region)

    def generate_data_key(self, KeyId, NumberOfBytes, EncryptionContext=None, GrantTokens=None):
        plaintext, blob, arn = self._kms.generate_data_key(KeyId, NumberOfBytes, EncryptionContext or {})
        return {"Plaintext": plaintext, "CiphertextBlob": blob, "KeyId": arn}

    def encrypt(self, KeyId, Plaintext, EncryptionContext=None, GrantTokens=None):
        blob, arn = self._kms.encrypt(KeyId, Plaintext, EncryptionContext or {})
        return {"CiphertextBlob": blob, "KeyId": arn}

    def decrypt(self, CiphertextBlob, EncryptionContext=None, GrantTokens=None, KeyId=None):
        plaintext, arn = self._kms.decrypt(CiphertextBlob, KeyId, EncryptionContext or {})
        return {"Plaintext": plaintext, "KeyId": arn}


def region_checks(keyward, folder):
    """Files of multi-Region keys, by AWS's own MRK-aware providers, in another Region than they were made in."""
    # The SDK logs what it refuses, with its traces.
    logging.disable(logging.CRITICAL)
    sys.path.insert(0, str(ROOT / "tests/esdk"))
    import cross
    from aws_encryption_sdk.exceptions import AWSEncryptionSDKClientError
    from aws_encryption_sdk.key_providers import kms as providers

    data = os.path.join(folder, "regions")
    names = ["eu-west-1", "us-east-1"]
    up = bring_up(keyward, data, ["--regions", ",".join(names)], "are up and linked")
    try:
        env = {name: environment(keyward, data, ["--region", name]) for name in names}

        def run(region, *arguments):
            full = {**os.environ, **env[region]}
            done = subprocess.run([keyward, *arguments], env=full, capture_output=True, text=True)
            check(f"keyward {' '.join(arguments[:2])} in {region}", done.returncode == 0, done.stderr)
            return done.stdout

        made = json.loads(run(names[0], "key", "create", "--multi-region", "--output", "json"))["KeyId"]
        run(names[0], "key", "replicate", made, names[1])
        arn = {name: f"arn:aws:kms:{name}:111122223333:key/{made}" for name in names}
        change = json.loads(run(names[0], "key", "replication", made, "--output", "json"))["Change"]
        run(names[1], "key", "wait-for", change)

        def client(name):
            at = env[name]
            kms = cross.KeywardKms(at["KEYWARD_ENDPOINTS"].split(",")[0], at["KEYWARD_CA"], at["KEYWARD_CERT"],
                                   at["KEYWARD_KEY"], str(ROOT / "proto"))
            return BotoLike(kms, name)

        clients = {name: client(name) for name in names}

        def provider(of, **settings):
            # As the SDK makes it, but for where its clients come from.
            made = type("Ours", (of,), {"_client": lambda self, key: clients[key_region(key)]})
            return made(**settings)

        def key_region(key):
            return (key.decode() if isinstance(key, bytes) else key).split(":")[3]

        sdk = cross.client()
        content = os.urandom(100_001)
        plain, ours, back = (os.path.join(folder, name) for name in ["mrk-plain", "mrk-ours", "mrk-back"])
        pathlib.Path(plain).write_bytes(content)
        run(names[0], "file", "encrypt", "--key-id", arn[names[0]], plain, "-o", ours)
        message = pathlib.Path(ours).read_bytes()
        aware = provider(providers.MRKAwareStrictAwsKmsMasterKeyProvider, key_ids=[arn[names[1]]])
        opened, _ = sdk.decrypt(source=message, key_provider=aware)
        check("AWS's SDK opens a file of ours by the related key of another Region", opened == content)
        plainly = provider(providers.StrictAwsKmsMasterKeyProvider, key_ids=[arn[names[1]]])
        try:
            sdk.decrypt(source=message, key_provider=plainly)
            raise SystemExit("a provider that knows no multi-Region keys took another Region's for its own")
        except AWSEncryptionSDKClientError:
            check("and not where it is told to know no related keys", True)
        theirs, _ = sdk.encrypt(source=content, key_provider=aware)
        pathlib.Path(ours).write_bytes(theirs)
        run(names[0], "file", "decrypt", ours, "-o", back)
        check("we open a file of AWS's SDK, made in another Region", pathlib.Path(back).read_bytes() == content)
    finally:
        up.terminate()
        up.wait()


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--keyward", required=True)
    keyward = str(pathlib.Path(arguments.parse_args().keyward).resolve())
    with tempfile.TemporaryDirectory() as folder:
        data = os.path.join(folder, "region")
        up = bring_up(keyward, data)
        try:
            env = environment(keyward, data)
            example = subprocess.run([sys.executable, str(ROOT / "tests/clients/readme.py")], cwd=ROOT,
                                     env={**os.environ, **env}, capture_output=True, text=True)
            check("the README's example", example.returncode == 0 and example.stdout.startswith("hello arn:aws:kms:"),
                  example.stdout + example.stderr)
            out = os.path.join(folder, "stubs")
            os.mkdir(out)
            compile_protos(out)
            arn = grpc_checks(env, out)
            file_checks(keyward, env, arn, folder)
        finally:
            up.terminate()
            up.wait()
        region_checks(keyward, folder)
    print(f"{PASSED} passed, 0 failed")


main()
