from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest

from evomerge_common.errors import InvalidInput, UnservedScheme
from evomerge_common.runtime.settings import SERVICES, Settings


def test_defaults_are_loopback_and_apart_for_each_service() -> None:
    addresses = {a for s in SERVICES for a in (_of(s).grpc_address, _of(s).metrics_address)}
    assert len(addresses) == 2 * len(SERVICES)
    assert all(a.startswith("127.0.0.1:") for a in addresses)
    assert _of("merger").grpc_address == "127.0.0.1:50052"
    assert _of("reporter").metrics_address == "127.0.0.1:9105"


def _of(service: str) -> Settings:
    return Settings.from_env({}, service=service)


def test_values_are_parsed_by_type() -> None:
    settings = Settings.from_env(
        {
            "EVOMERGE_ACK_WAIT": "7.5",
            "EVOMERGE_MAX_DELIVER": "3",
            "EVOMERGE_LINK_MODELS": "no",
            "EVOMERGE_MODEL_STORE": "~/m",
            "EVOMERGE_GRPC_ADDRESS": "[::1]:7",
            "EVOMERGE_LOG_FORMAT": "",
            "PATH": "/bin",
        },
        service="merger",
    )
    assert (settings.ack_wait, settings.max_deliver, settings.link_models) == (7.5, 3, False)
    assert settings.model_store == Path("~/m").expanduser()
    assert settings.grpc_address == "[::1]:7"
    assert settings.log_format == "console"  # empty counts as not set


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("EVOMERGE_NATS_ULR", "x", "did you mean 'EVOMERGE_NATS_URL'"),
        ("EVOMERGE_nats_url", "nats://x:1", "did you mean 'EVOMERGE_NATS_URL'"),
        ("EVOMERGE_NATS_URL", "http://x", "nats://host:port"),
        ("EVOMERGE_GRPC_ADDRESS", "localhost", "host:port"),
        ("EVOMERGE_GRPC_ADDRESS", "localhost:99999", "host:port"),
        ("EVOMERGE_ACK_WAIT", "soon", "expected a number"),
        ("EVOMERGE_ACK_WAIT", "nan", "at least"),
        ("EVOMERGE_MAX_DELIVER", "0", "at least 1"),
        ("EVOMERGE_MAX_DELIVER", "2.5", "expected an integer"),
        ("EVOMERGE_LINK_MODELS", "maybe", "true or false"),
        ("EVOMERGE_LOG_LEVEL", "inf", "did you mean 'info'"),
        ("EVOMERGE_LOG_FORMAT", "jsn", "did you mean 'json'"),
        ("EVOMERGE_DEVICE", "cuda:x", "device|DEVICE"),
        ("EVOMERGE_SHUTDOWN_GRACE", "-1", "zero or more"),
        ("EVOMERGE_ARTIFACT_STORE", "s3://b/x", "^EVOMERGE_ARTIFACT_STORE=s3://b/x: no store serves s3:// .*file://"),
        ("EVOMERGE_MODEL_STORE", "s3://b/x", "^EVOMERGE_MODEL_STORE=s3://b/x: no store serves s3:// .*file://"),
        ("EVOMERGE_STATE_DIR", "file://elsewhere/x", "^EVOMERGE_STATE_DIR=file://elsewhere/x: .*another host"),
        ("EVOMERGE_TLS_CERT", "/no/such/file", "no such file|belong together"),
        ("EVOMERGE_TOKEN_FILE", "/no/such/file", "cannot be read"),
    ],
)
def test_mistakes_are_named(variable: str, value: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message) as caught:
        Settings.from_env({variable: value})
    assert variable.upper() in str(caught.value).upper()


def test_a_password_in_the_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(InvalidInput, match="NATS_PASSWORD_FILE") as caught:
        Settings.from_env({"EVOMERGE_NATS_URL": "nats://me:hunter2@host:4222"})
    assert "hunter2" not in str(caught.value)


def test_secrets_come_from_files_and_stay_out_of_repr(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("hunter2\n")
    (tmp_path / "password").write_text("hunter3\n")
    settings = Settings.from_env(
        {"EVOMERGE_TOKEN_FILE": str(tmp_path / "token"), "EVOMERGE_NATS_PASSWORD_FILE": str(tmp_path / "password")}
    )
    assert (settings.token, settings.nats_password) == ("hunter2", "hunter3")
    assert "hunter" not in repr(settings)


def test_to_env_round_trips(tmp_path: Path) -> None:
    settings = Settings(model_store=tmp_path, ack_wait=3.0, link_models=False, token="t", metrics_address="127.0.0.1:1")
    assert Settings.from_env(settings.to_env()) == settings


def test_every_field_can_be_set_from_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "pem"
    file.write_text("")
    samples = {"str": "x", "Path": str(tmp_path), "float": "2.5", "int": "2", "bool": "false"}
    special = {
        "nats_url": "nats://h:1", "log_level": "debug", "log_format": "json", "device": "cuda:1",
        "backend": "vllm", "allow_code": "true", "warm": "true",
        "grpc_address": "h:1", "health_address": "h:1", "metrics_address": "h:1", "http_address": "h:1",
        "selector_address": "h:1",
        "evaluator_address": "h:2",
        **{name: str(file) for name in ("nats_tls_ca", "tls_cert", "tls_key", "tls_client_ca", "tls_ca")},
    }  # fmt: skip
    env = {f"EVOMERGE_{f.name.upper()}": special.get(f.name, samples[str(f.type)]) for f in fields(Settings)}
    settings = Settings.from_env(env)
    unchanged = {f.name for f in fields(Settings) if getattr(settings, f.name) == getattr(Settings(), f.name)}
    assert unchanged == set()
    assert replace(settings) == settings


def test_a_folder_may_be_a_file_uri(tmp_path: Path) -> None:
    folder = tmp_path / "my store"
    settings = Settings.from_env({"EVOMERGE_MODEL_STORE": folder.as_uri(), "EVOMERGE_ARTIFACT_STORE": folder.as_uri()})
    assert (settings.model_store, settings.artifact_store) == (folder, str(folder))


def test_a_store_of_a_scheme_that_nobody_serves_is_refused_in_code_too() -> None:
    with pytest.raises(UnservedScheme, match="EVOMERGE_ARTIFACT_STORE=s3://b/x"):
        Settings(artifact_store="s3://b/x")
    with pytest.raises(UnservedScheme, match="EVOMERGE_MODEL_STORE=s3:/b/x"):
        Settings(model_store=Path("s3://b/x"))
