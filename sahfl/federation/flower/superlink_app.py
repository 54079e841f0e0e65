"""Flower's own SuperLink app, made without its servers and without the layers of APIs that the gate blocks."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from flwr.common.constant import TRANSPORT_TYPE_GRPC_RERE
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME
from flwr.supercore.protobuf.translation import ProtobufTranslationMiddleware
from flwr.superlink.auth_plugin import NoOpControlAuthnPlugin
from flwr.superlink.config_loader import SuperLinkLifespanConfig
from flwr.superlink.main import create_app
from flwr.superlink.routers.fleet.node_auth import NodeAuthMiddleware
from starlette.middleware.base import BaseHTTPMiddleware


class Idle:
    """Replaces Flower's lifespan object, which would start gRPC servers and the SuperExec process."""

    def __init__(self, config: SuperLinkLifespanConfig, state_factory: Any) -> None:
        self.config = config

    def startup(self) -> None:
        """Start nothing."""

    def shutdown(self) -> None:
        """Stop nothing."""


def fleet_app() -> FastAPI:
    """The app with the fleet API alone: the gate blocks the others, and their layers slow every request down."""
    app = create_app(_settings(), Idle)  # type: ignore[arg-type] # it only calls startup and shutdown
    app.user_middleware[:] = [layer for layer in app.user_middleware if _is_of_fleet(layer)]
    return app


def _is_of_fleet(layer: Any) -> bool:
    return layer.cls in (NodeAuthMiddleware, ProtobufTranslationMiddleware, BaseHTTPMiddleware)


def _settings() -> SuperLinkLifespanConfig:
    """Settings of Flower's app: node keys are required, and no address or process in the settings is ever used."""
    return SuperLinkLifespanConfig(
        control_address="",
        health_server_address=None,
        host="",
        port=0,
        insecure=True,
        certificates=None,
        superexec_auth_secret=None,
        authn_plugin=NoOpControlAuthnPlugin(),
        event_log_plugin=None,
        fleet_event_log_plugin=None,
        enable_event_log=False,
        artifact_provider=None,
        enable_supernode_auth=True,
        fleet_api_type=TRANSPORT_TYPE_GRPC_RERE,
        fleet_api_address=None,
        simulation=False,
        ssl_ca_certfile=None,
        ssl_certfile=None,
        ssl_keyfile=None,
        database=FLWR_IN_MEMORY_DB_NAME,
        isolation="process",
        runtime_dependency_install=False,
    )
