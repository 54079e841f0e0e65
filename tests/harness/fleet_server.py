"""The server's network side in this process, over real TLS, without a study: gate, link and fleet."""

import time
from contextlib import contextmanager

from flwr.app import ConfigRecord, Message, RecordDict

from sahfl.federation.flower import handshake
from sahfl.federation.flower.doorway import open_port
from sahfl.federation.flower.fleet import Fleet
from sahfl.federation.flower.gate import Gate
from sahfl.federation.flower.link import Link
from sahfl.federation.flower.listener import Listener
from sahfl.federation.flower.parcels import prepare
from sahfl.federation.flower.superlink import StateGrid
from sahfl.federation.flower.supernode import FleetLink
from sahfl.trust.kit import ServerKit, SiteKit


class NetworkSide:
    """A listening gate; ``grid`` sends to the sites, ``connect`` is a site's process."""

    def __init__(self, paths, *, hold_s=2.0, give_up_s=600.0):
        self.paths, self.kit = paths, ServerKit.load(paths.server)
        self.tls = self.kit.tls()
        self.link, self.fleet = Link(), Fleet()
        self.gate = Gate(self.link, self.fleet, hold_s=hold_s)
        self.fleet.register(self.kit.sites(), self.link.enroll, revoked=self.kit.revoked())
        self.grid = StateGrid(self.link, self.fleet, wake=self.gate.wake, give_up_s=give_up_s)
        self.clients = []

    def client(self, site, *, instance="one", **headers):
        kit = SiteKit.load(self.paths.sites[site])
        said = handshake.request_headers(instance) | headers
        client = FleetLink("localhost", self.port, tls=kit.tls(), node_key=kit.node_key, headers=said)
        self.clients.append(client)
        return client

    def connect(self, site, **more):
        client = self.client(site, **more)
        client.activate()
        return client

    def node(self, site):
        return next(seat.node_id for seat in self.fleet.everyone() if seat.site == site)

    def ask(self, site, text="work"):
        content = RecordDict({"task": ConfigRecord({"text": text})})
        (id_,) = self.grid.push_messages([self.grid.create_message(content, "train", self.node(site), "")])
        return id_


@contextmanager
def serving(paths, **more):
    side = NetworkSide(paths, **more)
    side.doorway = open_port("127.0.0.1", 0)
    with Listener(side.gate, side.doorway, tls=side.tls, closing=side.gate.close) as listener:
        side.port = int(listener.address.rpartition(":")[2])
        try:
            yield side
        finally:
            for client in side.clients:
                client.close()


def answer(client, offer, text="done"):
    """Fetch what was offered, and send a reply to it."""
    message = client.fetch(offer)
    client.confirm(offer)
    reply = Message(RecordDict({"answer": ConfigRecord({"text": text})}), reply_to=message)
    client.push(prepare(reply, client.node_id))
    return message


def replies(side, *ids, timeout_s=10.0):
    """What the grid hears about these requests."""
    end, found = time.monotonic() + timeout_s, []
    while len(found) < len(ids) and time.monotonic() < end:
        found += side.grid.pull_messages(ids)
    return found
