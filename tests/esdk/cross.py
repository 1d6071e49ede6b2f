#!/usr/bin/env python3
"""Encrypts and decrypts files with AWS's own Encryption SDK for Python, under keys of Keyward.

The counterpart of `keyward file`: what one writes, the other must read. The data keys come from a Keyward
server over gRPC, or, to test the format without a server, from a key on the command line.

    cross.py encrypt|decrypt --in FILE --out FILE [--suite 0x0478|0x0578] [--context KEY=VALUE]...
             [--frame-length BYTES]
             (--local-key HEX |
              --endpoint HOST:PORT --ca PEM --cert PEM --key PEM --key-id ARN --proto-dir DIR)

Exit code 0 means done; 1 that the message or the key was refused (one line says why); 2 bad usage.
"""

import argparse
import importlib
import logging
import os
import pathlib
import struct
import sys
import tempfile

import attr
import aws_encryption_sdk
from aws_encryption_sdk.exceptions import AWSEncryptionSDKClientError, DecryptKeyError, GenerateKeyError
from aws_encryption_sdk.identifiers import AlgorithmSuite, CommitmentPolicy
from aws_encryption_sdk.key_providers.base import MasterKey, MasterKeyConfig
from aws_encryption_sdk.structures import DataKey, EncryptedDataKey, MasterKeyInfo
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

PROVIDER_ID = "aws-kms"
LOCAL_KEY_ARN = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
CHUNK = 1 << 20
CALL_SECONDS_MAX = 10


class LocalKms:
    """Wraps data keys with AES-256-GCM under a key that is given: nonce 12, ciphertext, tag 16; the
    encryption context is the additional data. A test's, not for use."""

    def __init__(self, key_hex):
        self._cipher = AESGCM(bytes.fromhex(key_hex))

    @staticmethod
    def _context_bytes(context):
        texts = (text.encode() for pair in sorted(context.items()) for text in pair)
        return b"".join(struct.pack(">I", len(text)) + text for text in texts)

    def encrypt(self, plaintext, context):
        nonce = os.urandom(12)
        return nonce + self._cipher.encrypt(nonce, plaintext, self._context_bytes(context)), LOCAL_KEY_ARN

    def generate_data_key(self, length, context):
        plaintext = os.urandom(length)
        return (plaintext, *self.encrypt(plaintext, context))

    def decrypt(self, ciphertext, key_arn, context):
        try:
            return self._cipher.decrypt(ciphertext[:12], ciphertext[12:], self._context_bytes(context)), key_arn
        except InvalidTag as error:
            raise DecryptKeyError("the wrapped key does not authenticate under this key and context") from error


class KeywardKms:
    """A Keyward server, over mutual TLS, with stubs made from its published contract."""

    def __init__(self, endpoint, ca, cert, key, proto_dir):
        import grpc

        self._errors = grpc.RpcError
        self._kms = self._compile(proto_dir)
        stubs = importlib.import_module("keyward.v1.kms_pb2_grpc")
        credentials = grpc.ssl_channel_credentials(
            root_certificates=pathlib.Path(ca).read_bytes(),
            private_key=pathlib.Path(key).read_bytes(),
            certificate_chain=pathlib.Path(cert).read_bytes(),
        )
        self._service = stubs.KeyServiceStub(grpc.secure_channel(endpoint, credentials))

    @staticmethod
    def _compile(proto_dir):
        from grpc_tools import protoc

        google = pathlib.Path(importlib.import_module("grpc_tools").__file__).parent / "_proto"
        with tempfile.TemporaryDirectory() as out:
            arguments = [f"-I{proto_dir}", f"-I{google}", f"--python_out={out}", f"--grpc_python_out={out}"]
            files = [str(path) for path in pathlib.Path(proto_dir).glob("keyward/v1/*.proto")]
            if not files or protoc.main(["protoc", *arguments, *files]) != 0:
                raise SystemExit(f"no stubs could be made from {proto_dir}/keyward/v1/*.proto")
            sys.path.insert(0, out)
            module = importlib.import_module("keyward.v1.kms_pb2")
            importlib.import_module("keyward.v1.kms_pb2_grpc")
        return module

    def _call(self, method, failure, request):
        try:
            return getattr(self._service, method)(request, timeout=CALL_SECONDS_MAX)
        except self._errors as error:
            raise failure(f"{method}: {error.code().name}: {error.details()}") from error

    def encrypt(self, key_id, plaintext, context):
        request = self._kms.EncryptRequest(KeyId=key_id, Plaintext=plaintext, EncryptionContext=context)
        response = self._call("Encrypt", GenerateKeyError, request)
        return response.CiphertextBlob, response.KeyId

    def generate_data_key(self, key_id, length, context):
        request = self._kms.GenerateDataKeyRequest(
            KeyId=key_id, NumberOfBytes=length, EncryptionContext=context
        )
        response = self._call("GenerateDataKey", GenerateKeyError, request)
        return response.Plaintext, response.CiphertextBlob, response.KeyId

    def decrypt(self, ciphertext, key_arn, context):
        request = self._kms.DecryptRequest(
            CiphertextBlob=ciphertext, KeyId=key_arn, EncryptionContext=context
        )
        response = self._call("Decrypt", DecryptKeyError, request)
        return response.Plaintext, response.KeyId


class BoundKms:
    """A Keyward server together with the key to encrypt under: the interface of LocalKms."""

    def __init__(self, kms, key_id):
        self._kms, self._key_id = kms, key_id
        self.decrypt = kms.decrypt

    def encrypt(self, plaintext, context):
        return self._kms.encrypt(self._key_id, plaintext, context)

    def generate_data_key(self, length, context):
        return self._kms.generate_data_key(self._key_id, length, context)


@attr.s(hash=True)
class KeyConfig(MasterKeyConfig):
    """What the SDK makes a KmsKey from."""

    provider_id = PROVIDER_ID
    kms = attr.ib(hash=False)


class KmsKey(MasterKey):
    """A key of a KMS, as AWS's own KMSMasterKey is one: provider "aws-kms", information the key's ARN."""

    provider_id = PROVIDER_ID
    _config_class = KeyConfig

    def owns_data_key(self, data_key):
        return data_key.key_provider == self.key_provider

    def _generate_data_key(self, algorithm, encryption_context):
        plaintext, ciphertext, key_arn = self.config.kms.generate_data_key(
            algorithm.kdf_input_len, encryption_context
        )
        return DataKey(MasterKeyInfo(PROVIDER_ID, key_arn), plaintext, ciphertext)

    def _encrypt_data_key(self, data_key, algorithm, encryption_context):
        ciphertext, key_arn = self.config.kms.encrypt(data_key.data_key, encryption_context)
        return EncryptedDataKey(MasterKeyInfo(PROVIDER_ID, key_arn), ciphertext)

    def _decrypt_data_key(self, encrypted_data_key, algorithm, encryption_context):
        expected = self.key_id.decode()
        plaintext, key_arn = self.config.kms.decrypt(
            encrypted_data_key.encrypted_data_key, expected, encryption_context
        )
        if key_arn != expected:
            raise DecryptKeyError(f"decrypted under {key_arn}, not {expected}")
        return DataKey(self.key_provider, plaintext, encrypted_data_key.encrypted_data_key)


def client():
    policy = CommitmentPolicy.REQUIRE_ENCRYPT_REQUIRE_DECRYPT
    return aws_encryption_sdk.EncryptionSDKClient(commitment_policy=policy)


def encrypt(key, source, suite, context, frame_length, output):
    """Writes the message of `source` (a stream) to `output`."""
    with client().stream(
        mode="e",
        source=source,
        key_provider=key,
        algorithm=AlgorithmSuite.get_by_id(suite),
        encryption_context=context,
        frame_length=frame_length,
    ) as stream:
        copy(stream, output)


def decrypt(key, source, suite, context, output):
    """Writes the content of `source` (a message) to `output`; all of it is true once this returns."""
    with client().stream(mode="d", source=source, key_provider=key) as stream:
        header = stream.header
        if suite is not None and header.algorithm.algorithm_id != suite:
            raise AWSEncryptionSDKClientError(f"the message is of suite {header.algorithm.algorithm_id:#06x}")
        for name, value in context.items():
            if header.encryption_context.get(name) != value:
                raise AWSEncryptionSDKClientError(f"the message's context does not say {name}={value}")
        copy(stream, output)
        if not hasattr(stream, "footer"):
            raise AWSEncryptionSDKClientError("the message was not read to its end")
    if source.read(1):
        raise AWSEncryptionSDKClientError("bytes follow the message")


def copy(stream, output):
    while chunk := stream.read(CHUNK):
        output.write(chunk)


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("operation", choices=["encrypt", "decrypt"])
    parser.add_argument("--in", dest="input", required=True, metavar="FILE")
    parser.add_argument("--out", dest="output", required=True, metavar="FILE")
    parser.add_argument("--suite", type=lambda text: int(text, 16), choices=[0x0478, 0x0578])
    parser.add_argument("--frame-length", type=int, default=4096)
    parser.add_argument("--context", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--local-key", metavar="HEX")
    server = ["endpoint", "ca", "cert", "key", "key-id", "proto-dir"]
    for name in server:
        parser.add_argument(f"--{name}")
    options = parser.parse_args(arguments)
    if any("=" not in pair for pair in options.context):
        parser.error("a --context is KEY=VALUE")
    options.context = dict(pair.split("=", 1) for pair in options.context)
    if not options.local_key:
        missing = [f"--{name}" for name in server if not getattr(options, name.replace("-", "_"))]
        if missing:
            parser.error(f"without --local-key, {', '.join(missing)} must be given")
    return options


def master_key(options):
    if options.local_key:
        return KmsKey(key_id=LOCAL_KEY_ARN, kms=LocalKms(options.local_key))
    server = KeywardKms(options.endpoint, options.ca, options.cert, options.key, options.proto_dir)
    return KmsKey(key_id=options.key_id, kms=BoundKms(server, options.key_id))


def main(arguments=None):
    options = parse(arguments)
    logging.disable(logging.CRITICAL)
    key = master_key(options)
    try:
        with open(options.input, "rb") as source, open(options.output, "wb") as output:
            if options.operation == "encrypt":
                suite = options.suite or 0x0478
                encrypt(key, source, suite, options.context, options.frame_length, output)
            else:
                decrypt(key, source, options.suite, options.context, output)
    except (AWSEncryptionSDKClientError, InvalidTag, InvalidSignature, OSError) as error:
        print(f"cross.py: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
